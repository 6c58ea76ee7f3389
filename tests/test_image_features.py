"""Cached image features equal the tower's, which runs once per image."""

import inspect
import random

import pytest
import torch
from torch.testing import assert_close

import cepo.fast.image_features
from cepo import policy_path
from cepo.fast.image_features import ImageFeatures, cacheable_tower
from tests.support import tiny_models
from tests.support.prompts import image_for
from tests.support.tiny_models import IMAGE_MODELS
from tests.support.training import half_right, logged, make, wrong_answers


@pytest.fixture(params=IMAGE_MODELS)
def case(request):
    """A model with a frozen tower, and four images, the last equal to the first."""
    model = tiny_models.make(request.param).eval()
    text = model.base_model.language_model
    for parameter in set(model.parameters()) - set(text.parameters()):
        parameter.requires_grad_(False)
    images = [image_for(request.param, random.Random(seed))[1] for seed in range(3)]
    return model, [*images, images[0]]


def features(model, images):
    return model.base_model.get_image_features(
        **{name: torch.cat([image[name] for image in images]) for name in images[0]}, return_dict=True
    )


def flat(output):
    """All tensors in an output."""
    found = []
    for value in output.values():
        found += [torch.cat(list(value))] if isinstance(value, tuple) else value if isinstance(value, list) else [value]
    return found


@pytest.fixture
def ran(monkeypatch):
    """Number of images in each call of the tower."""
    counts = []

    def watch(model):
        own = type(model.base_model).get_image_features

        def counted(self, pixel_values, *args, **kwargs):
            grid = kwargs.get("image_grid_thw")
            counts.append(len(pixel_values if grid is None else grid))
            return own(self, pixel_values, *args, **kwargs)

        counted.__signature__ = inspect.signature(own)
        monkeypatch.setattr(type(model.base_model), "get_image_features", counted)
        return counts

    return watch


def test_cached_features_are_those_of_the_tower(case, ran):
    model, images = case
    expected = [features(model, picked) for picked in (images, images[1:], images[:1], images[::-1])]
    counts = ran(model)
    with ImageFeatures(pytest.fail).kept(model):
        found = [features(model, picked) for picked in (images, images[1:], images[:1], images[::-1])]
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        for a, b in zip(flat(one), flat(other), strict=True):
            assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert counts == [3]
    assert "get_image_features" not in vars(model.base_model)


def test_only_new_images_run(case, ran):
    model, images = case
    counts = ran(model)
    kept = ImageFeatures(pytest.fail)
    with kept.kept(model):
        features(model, images[:1])
        features(model, images)
    with kept.kept(model):  # a later pass
        features(model, images[:2])
    assert counts == [1, 2]
    kept.forget()
    with kept.kept(model):
        features(model, images[:2])
    assert counts == [1, 2, 2]


def test_another_precision_runs_the_tower_again(case, ran):
    model, images = case
    counts = ran(model)
    with ImageFeatures(pytest.fail).kept(model):
        plain = features(model, images[:1])
        with torch.autocast("cpu", torch.bfloat16):
            half = features(model, images[:1])
    assert counts == [1, 1]
    assert not torch.equal(flat(plain)[0].float(), flat(half)[0].float())


def test_slightly_different_images_run_again(case, ran):
    """With equal sums of pixels, too."""
    model, images = case
    other = {name: values.clone() for name, values in images[0].items()}
    other["pixel_values"] = other["pixel_values"].flip(0 if other["pixel_values"].dim() == 2 else -1)
    counts = ran(model)
    with ImageFeatures(pytest.fail).kept(model):
        features(model, images[:1])
        features(model, [other])
    assert counts == [1, 1]


def test_a_trained_tower_or_one_with_dropout_is_not_cached(case):
    model, _ = case
    assert cacheable_tower(model) is model.base_model
    seeing = next(child for child in model.base_model.children() if child is not model.base_model.language_model)
    parameter = next(seeing.parameters())
    parameter.requires_grad_(True)
    assert cacheable_tower(model) is None
    parameter.requires_grad_(False)
    seeing.add_module("dropout", torch.nn.Dropout(0.1))
    assert cacheable_tower(model) is None


def test_a_text_model_has_no_tower():
    assert cacheable_tower(tiny_models.make("qwen3")) is None


def test_an_output_that_cannot_be_split_is_not_cached(case, monkeypatch):
    """One warning, and the tower's features."""
    model, images = case
    expected = flat(features(model, images))
    own = type(model.base_model).get_image_features

    def strange(self, pixel_values, image_grid_thw=None, **kwargs):
        grid = {} if image_grid_thw is None else {"image_grid_thw": image_grid_thw}
        output = own(self, pixel_values, **grid, **kwargs)
        output["strange"] = torch.zeros(1234)
        return output

    monkeypatch.setattr(type(model.base_model), "get_image_features", strange)
    said = []
    kept = ImageFeatures(said.append)
    with kept.kept(model):
        for _ in range(2):
            found = features(model, images)
            for a, b in zip(flat(found), expected, strict=False):
                assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert len(said) == 1
    assert "vision tower runs in each pass" in said[0]


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"method": "cepo"}, 1),
        # log P_S by the policy, log P_T by the lagging teacher
        ({"method": "rlsd", "teacher": "ema", "teacher_ema_decay": 0.5}, 2),
    ],
)
def test_scoring_passes_of_the_same_weights_run_the_tower_once(tmp_path, figures, monkeypatch, ran, options, runs):
    """Also a tower that is trained; the evidence is that of passes which run it each time."""
    wrong_answers(monkeypatch)
    found = []
    for kept in (True, False):
        with monkeypatch.context() as patch:
            if not kept:
                patch.setattr(cepo.fast.image_features, "cacheable_tower", lambda model, frozen=True: None)
            torch.manual_seed(0)
            trainer = make(
                tmp_path,
                figures,
                policy_path(),
                half_right,
                per_device_train_batch_size=4,
                teacher_batch_tokens=1,
                **options,
            )
            counts = ran(trainer.model)
            in_teachers = []

            def watched(*args, own=trainer._find_evidence, counts=counts, in_teachers=in_teachers, **kwargs):
                before = len(counts)
                result = own(*args, **kwargs)
                in_teachers.append(len(counts) - before)
                return result

            trainer._find_evidence = watched
            trainer.train()
        found.append((in_teachers, logged(trainer, "cepo/evidence/correct_mean")))
    (once, values), (each, expected) = found
    assert once == [runs] * 2
    assert min(each) > runs
    assert values == pytest.approx(expected, rel=1e-4)
    assert any(expected)
