"""Tests of the score of a class in whole-image classification."""

import torch

from skysense_o.inference.classify import class_scores, class_vectors, phrase_vectors
from skysense_o.vocabulary import Vocabulary


def test_the_best_phrase_of_a_class_counts(small_model):
    tower, templates = small_model.tower.eval(), ["{}", "an aerial photo of {}"]
    vocabulary = Vocabulary.parse("river|stream,sea|lake|open water")
    with torch.no_grad():
        images = class_vectors(tower, ["stream", "open water", "river"], templates)
        phrases = phrase_vectors(tower, vocabulary, templates)
        scores = class_scores(images, phrases, vocabulary)
        cosines = images @ phrases.T
    assert scores.shape == (3, 2)
    assert torch.equal(scores, torch.stack([cosines[:, :2].amax(1), cosines[:, 2:].amax(1)], 1))
    torch.testing.assert_close(scores.amax(1), torch.ones(3))
    assert scores.argmax(1).tolist() == [0, 1, 0]
