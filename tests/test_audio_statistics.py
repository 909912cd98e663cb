"""Statistics of log-mels as a part of the audio encoder: what they are, and that they are learned, saved and loaded."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.fft
import torch
from helpers import run

from clips.features import ClipFeatures
from modeling_rgmc import RGMCModel
from statistics_rgmc import ATTACKS, LAGS, MODULATIONS, MOVEMENT, NUM_CEPSTRA, NUM_STATISTICS, QUANTILES, summarize
from training.arguments import ModelArguments, TrainingArguments
from training.building import audio_statistics
from training.checks import check_arguments
from training.throughput import forward_flops


def reference(log_mel: np.ndarray) -> np.ndarray:
    """The statistics of one clip `(T, F)`, one number after the other."""
    frames, columns = len(log_mel), log_mel.T.astype(np.float64)
    rises = np.maximum(np.diff(columns), 0)
    onsets = rises.mean(axis=0)
    strongest = 1 + np.argsort(-onsets)[: int(ATTACKS * frames)]
    parts = [columns.mean(axis=1), columns.std(axis=1)]
    parts.append([np.sort(column)[int(share * (frames - 1))] for column in columns for share in QUANTILES])
    parts.append(rises.mean(axis=1))
    parts.append([column[strongest].mean() - column.mean() for column in columns])
    swing = columns - columns.mean(axis=1, keepdims=True)
    for lag in LAGS:
        parts.append([(row[lag:] * row[:-lag]).mean() / (row.std() + 1e-3) ** 2 for row in swing])
    onsets = onsets - onsets.mean()
    products = [(onsets[lag:] * onsets[:-lag]).sum() for lag in range(10, 200)]
    parts.append(np.array(products) / ((onsets**2).sum() + 1e-6))
    cepstra = scipy.fft.dct(swing, axis=0)[:NUM_CEPSTRA] / 2
    for series in (cepstra, cepstra[:, MOVEMENT:] - cepstra[:, :-MOVEMENT]):
        spread = np.sqrt((series**2).mean(axis=1)) + 1e-3
        pairs = [(i, j) for i in range(NUM_CEPSTRA) for j in range(i + 1, NUM_CEPSTRA)]
        parts.append([(series[i] * series[j]).mean() / spread[i] / spread[j] for i, j in pairs])
    bands = swing.reshape(16, 4, frames).mean(axis=1)
    power, rates = np.abs(np.fft.rfft(bands)) ** 2, np.fft.rfftfreq(frames, 0.01)
    limits = list(pairwise(MODULATIONS))
    parts.append([np.log(row[(rates >= low) & (rates < high)].mean() + 1e-3) for row in power for low, high in limits])
    return np.concatenate(parts)


def test_the_statistics_are_those_of_a_plain_loop(log_mels):
    clips = log_mels(2)
    clips[1, 0, :500] = -100.0  # a silent half
    found = summarize(clips)
    assert found.shape == (2, NUM_STATISTICS)
    expected = np.stack([reference(clip[0].numpy()) for clip in clips])
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=2e-3)


def test_silence_and_a_steady_tone_have_finite_statistics():
    clips = torch.full((2, 1, 1001, 64), -100.0)
    clips[1, :, :, 20] = -10.0
    assert summarize(clips).isfinite().all()


def test_the_statistics_are_added_to_the_embedding_in_float32(make_model, log_mels):
    model, clips = make_model(audio_statistics=True), log_mels(3)
    layer = model.audio_tower.statistics
    model.set_audio_statistics(summarize(clips).mean(0), summarize(clips).std(0) + 1)
    with torch.no_grad():
        added = layer(clips)
        assert layer.linear(((summarize(clips) - layer.mean) / layer.deviation).clamp(-5, 5)).allclose(added)
        total = model.audio_tower(input_features=clips).audio_embeds + added
        assert model.embed_audio(clips).allclose(torch.nn.functional.normalize(total, dim=-1), atol=1e-6)
        alone = torch.cat([model.embed_audio(clip[None]) for clip in clips])
        assert model.embed_audio(clips).allclose(alone, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            statistics = []
            hook = layer.dropout.register_forward_hook(lambda *arguments: statistics.append(arguments[1][0]))
            layer(clips)
        layer(clips)
        hook.remove()
    assert statistics[0].equal(statistics[1])


def test_a_model_without_the_option_has_no_statistics(make_model):
    assert not any("statistics" in name for name in make_model().state_dict())


def test_the_layer_is_trained_and_frozen_with_the_encoder(make_model, log_mels):
    model, clips = make_model(audio_statistics=True), log_mels(2)
    model.train()
    assert not model.embed_audio(clips).equal(model.embed_audio(clips))  # dropout
    model.embed_audio(clips)[0, 0].backward()
    assert model.audio_tower.statistics.linear.weight.grad.abs().sum() > 0
    model.freeze_audio_tower()
    model.train()
    assert model.embed_audio(clips).equal(model.embed_audio(clips))


def test_a_training_standardises_by_its_own_clips_and_saves_the_layer(corpus, tmp_path, log_mels):
    checkpoint = run(tmp_path, corpus, "--audio_statistics", "true", "--max_steps", "2")
    model = RGMCModel.from_pretrained(checkpoint)
    assert model.config.audio_statistics
    layer = model.audio_tower.statistics
    assert layer.mean.abs().max() > 1 and layer.deviation.min() > 0 and not layer.deviation.eq(1).any()
    continued = run(tmp_path, corpus, "--model", str(checkpoint), "--max_steps", "1", name="continued")
    again = RGMCModel.from_pretrained(continued).audio_tower.statistics
    assert again.mean.equal(layer.mean) and not again.linear.weight.equal(layer.linear.weight)


def test_the_standard_is_mean_and_deviation_over_clips_spread_across_the_corpus(log_mels):
    clips = log_mels(5)

    class Features(ClipFeatures):
        def __init__(self):
            pass

        def __len__(self):
            return 5

        def read(self, rows):
            return clips[rows]

    every = summarize(clips)
    mean, deviation = audio_statistics(Features())
    assert mean.allclose(every.mean(0)) and deviation.allclose(every.std(0, correction=0).clamp(min=1e-3))
    assert audio_statistics(Features(), most=3)[0].allclose(every[[0, 2, 4]].mean(0))


def test_operations_are_counted_with_the_statistics(make_config, log_mels):
    ids = torch.ones(1, 4, dtype=torch.long)
    batch = {"input_features": log_mels(1), "input_ids": ids, "labels": ids}
    plain, more = (forward_flops(make_config(audio_statistics=value), dict(batch))[0] for value in (False, True))
    assert more > plain + 2 * NUM_STATISTICS * 32 - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze_audio_tower", "true"], "--audio_statistics does nothing where the audio encoder is not trained"),
        (["--conditioning", "candidate"], "--audio_statistics does nothing where the audio encoder is not trained"),
    ],
)
def test_statistics_that_nothing_would_learn_are_refused(corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, corpus, "--audio_statistics", "true", *options)


def test_statistics_are_for_an_encoder_from_scratch():
    with pytest.raises(ValueError, match="--audio_statistics is for an encoder from scratch: give --audio_config"):
        check_arguments(ModelArguments(audio_statistics=True), TrainingArguments())
