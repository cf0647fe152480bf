"""polytag: classifiers of many attributes from pictures and a label table with holes."""
