"""The training package: from a classifier to a model file; imports fcnseg, never serving."""
