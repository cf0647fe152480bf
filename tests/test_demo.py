"""The demo, small: what it draws, trains, says and leaves."""

from polytag.demo import run_demo


def test_the_demo_trains_predicts_and_says_that_the_pictures_are_drawn(tmp_path):
    shown = run_demo(tmp_path, count=120)
    text = shown.to_text()
    assert "DRAWN" in text
    assert "washable is a coin toss" in text
    assert "✓" in text and "attributes present: " in text
    assert f"where to look: {shown.run.path}" in text
    assert max(map(len, text.replace(str(tmp_path), "demo").splitlines())) <= 80
    assert (shown.run.path / "model.onnx").is_file()
    listed = [line.split()[0] for line in text.split("where to look: ")[1].splitlines()[1:6]]
    assert listed[0] == "report.html" and listed[-1] == "model.onnx"
    assert all((shown.run.path / name).is_file() for name in listed)
    assert shown.run.metrics["skipped"] == 4
    verdicts = {a.name: a.verdict for a in shown.run.evaluation.attributes}
    assert verdicts["patterned"].startswith("learnable")
    assert verdicts["coloured"].startswith("too few to tell: 6 absent")
    assert not verdicts["washable"].startswith("learnable")  # it is a coin toss
    for name, verdict in verdicts.items():
        assert (f" {name}*" in text) == (not verdict.startswith("learnable"))
    assert text.count("* training could not show") == 1
    measured = {a.name: a.auc.value for a in shown.run.evaluation.attributes}
    assert measured["coloured"] > 0.7
    assert measured["patterned"] > 0.7

    again = run_demo(tmp_path, count=120)  # the pictures are used again, the run is a new one
    assert again.run.path.name == "probe-2"
    assert again.labels == shown.labels
    assert again.to_dict()["metrics"]["macro"] == shown.to_dict()["metrics"]["macro"]
