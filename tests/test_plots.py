"""Pictures of a run: the texts in them, and that odd input draws too."""

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from polytag import plots
from polytag.history import Epoch, History, Validation


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, for looking at their texts."""
    saved = []
    original = matplotlib.figure.Figure.savefig

    def remember(figure, *args, **options):
        saved.append(figure)
        return original(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remember)
    return saved


def history(losses, stages=None, epochs=()):
    return History(("a",), losses, [1e-3] * len(losses), stages or ["one"] * len(losses), [*epochs])


def test_the_loss_curve_has_the_axes_and_the_title_that_were_asked_for(tmp_path, figures):
    plots.loss_curve(history([0.7, 0.5, 0.4]), "Aimonk_multilabel_problem", tmp_path / "loss.png")
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration_number", "training_loss")
    assert axes.get_title() == "Aimonk_multilabel_problem"
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.7], [1, 0.5], [2, 0.4]]
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (840, 504)


def test_a_long_curve_is_smoothed_and_stages_and_choosing_rows_are_marked(tmp_path, figures):
    rng = np.random.default_rng(0)
    losses = (np.linspace(0.7, 0.2, 400) + rng.normal(0, 0.05, 400)).tolist()
    found = Validation(0.4, 0.5, 0.8, 0.2, (0.8,))
    epochs = [Epoch("head", 1, 100, 0.6, 1.0, found), Epoch("later", 1, 400, 0.3, 1.0, found)]
    stages = ["head"] * 100 + ["later"] * 300
    plots.loss_curve(history(losses, stages, epochs), "two stages", tmp_path / "loss.png")
    (axes,) = figures[0].axes
    raw, head, smooth, choosing, part = (line.get_xydata() for line in axes.lines)
    assert raw[:, 1].tolist() == losses
    # The mean of the ten around it, at the ends of those there are.
    assert smooth[100, 1] == pytest.approx(np.mean(losses[195:205]))
    assert (len(head), len(smooth)) == (100, 300)  # each stage by itself
    assert head[-1, 1] == pytest.approx(np.mean(losses[94:100]))
    assert np.std(np.diff(smooth[:, 1])) < np.std(np.diff(losses)) / 3
    assert choosing.tolist() == [[99, 0.4], [399, 0.4]]
    assert part[:, 0].tolist() == [99.5, 99.5]
    assert [text.get_text() for text in axes.texts] == ["head", "later"]


def sample(name="a.jpg", size=(30, 20), truth=(1, 0, np.nan), p=(0.9, 0.8, 0.2)):
    image = np.full((*size, 3), 90, np.uint8)
    k = len(truth)
    arrays = np.array(truth, np.float32), np.array(p, np.float32), np.full(k, 0.5)
    return plots.Sample(name, image, *arrays)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_right_and_wrong_differ_by_sign_and_weight_not_by_colour_alone(tmp_path, figures):
    plots.sample_predictions([sample()], ["red", "blue", "green"], tmp_path / "s.png")
    lines = {
        text.get_text().split()[1]: text for text in figures[0].texts if "%" in text.get_text()
    }
    assert lines["blue"].get_text() == "✗ blue            present  80% (absent)"
    assert lines["red"].get_text().startswith("✓ red")
    assert lines["green"].get_text().startswith("? green")
    assert lines["blue"].get_weight() == "bold"
    assert lines["red"].get_weight() == "normal"


def test_mistakes_come_first_and_the_rest_is_counted(tmp_path, figures):
    truth, p = [0] * 19 + [1], [0.1] * 20
    names = [f"a{k}" for k in range(20)]
    plots.sample_predictions([sample(truth=truth, p=p)], names, tmp_path / "s.png")
    lines = [text for text in texts(figures[0]) if "a" in text and "%" in text]
    assert lines[0].startswith("✗ a19")
    assert "  and 13 more" in texts(figures[0])


def test_dollar_signs_long_names_and_extreme_shapes_are_drawn_as_they_are(tmp_path, figures):
    odd = sample(name="cost_$5_$6_" + "x" * 80 + ".jpg", size=(3, 300))
    plots.sample_predictions(
        [odd, sample(size=(300, 3))], ["$a_$b", "b" * 50, "c"], tmp_path / "s.png"
    )
    plots.loss_curve(history([0.5]), "$\\broken", tmp_path / "l.png")
    assert any(text.startswith("cost_$5_$6") for text in texts(figures[0]))


def test_the_same_run_draws_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plots.loss_curve(history([0.7, 0.5]), "title", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
