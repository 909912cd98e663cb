"""What --int8 promises: half the decoder and nearly the same captions, and an encoder that stays as it is."""

import copy

import pytest
import torch
from helpers import ROOT, saved_pipeline, write_tone

import captions.arguments
from clips.int8 import decoder_size, quantize_decoder
from corpora.demo import SAMPLE_RATE, draw_clip
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor

pytest.importorskip("torchao")
DEMO = ROOT / "checkpoints" / "demo"


def test_an_int8_decoder_is_less_than_half_and_captions_nearly_alike():
    model, processor = RGMCModel.from_pretrained(DEMO).eval(), RGMCProcessor.from_pretrained(DEMO)
    clips = [draw_clip(0, 200 + index)[1] for index in range(10)]
    log_mels = processor.feature_extractor(clips, sampling_rate=SAMPLE_RATE)["input_features"]
    with torch.no_grad():
        embeds = model.embed_audio(log_mels)
    size, before = decoder_size(model), model.generate(audio_embeds=embeds, selection="best")
    quantize_decoder(model)
    after = model.generate(audio_embeds=embeds, selection="best")
    assert decoder_size(model) < size / 2
    texts = [processor.batch_decode(tokens, skip_special_tokens=True) for tokens in (before, after)]
    assert sum(one == other for one, other in zip(*texts)) >= 8
    assert model.encoder_fingerprint() == model.datastore.encoder_fingerprint


@pytest.mark.parametrize("text", ["gpt2", "llama"])
def test_only_the_linear_layers_of_the_decoder_are_quantised(make_model, text):
    model = make_model(text)
    former = copy.deepcopy(model)
    quantize_decoder(model)
    tokens, mask = torch.arange(12)[None], torch.ones(1, 12, dtype=torch.long)
    embeds = torch.nn.functional.normalize(torch.ones(1, 32), dim=-1)
    with torch.no_grad():
        one, other = (own(audio_embeds=embeds, input_ids=tokens, attention_mask=mask).logits for own in (model, former))
    scale = other.abs().max()
    assert 1e-5 * scale < (one - other).abs().max() < 0.02 * scale
    weights = dict(model.named_parameters())
    quantised = {name for name, weight in weights.items() if hasattr(weight, "__tensor_flatten__")}
    wanted = {
        name
        for name, weight in former.text_model.named_parameters(prefix="text_model")
        if weight.ndim == 2 and not any(part in name for part in ("wte", "wpe", "embed", "lm_head"))
    }
    assert quantised == wanted
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is embedding) == model.config.text_config.tie_word_embeddings
    assert torch.equal(head, former.get_output_embeddings().weight)


def test_the_command_quantises_the_decoder_and_refuses_the_encoder(
    make_model, processor, caption_command, tmp_path, monkeypatch
):
    saved_pipeline(make_model(max_new_tokens=8), processor, tmp_path / "outputs" / "demo")
    write_tone(tmp_path / "song.wav", 220)
    options = ["song.wav", "--num_proc", 1, "--output", "rows.jsonl", "--existing", "skip"]
    assert caption_command(*options)[0] == 0
    quantised = []
    monkeypatch.setattr("captions.captioner.quantize_decoder", lambda model: quantised.append(model))
    status, _, err = caption_command(*options, "--int8", "decoder")
    assert status == 0 and "1 again" in err and len(quantised) == 1  # other captions, perhaps
    status, _, err = caption_command(*options, "--int8", "encoder")
    assert status == 2 and "the datastore's fingerprint would no longer hold" in err
    monkeypatch.setattr(captions.arguments, "find_spec", lambda name: None)
    status, _, err = caption_command(*options, "--int8", "decoder")
    assert status == 2 and "--int8 needs torchao: pip install torchao" in err
