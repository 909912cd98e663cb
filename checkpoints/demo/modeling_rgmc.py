"""
The model of "Retrieval Guided Music Captioning via Multimodal Prefixes" (Srivatsan et al., IJCAI 2024).

Shape letters: `B` clips, `T` = 1001 mel frames, `F` = 64 mel bins, `E` = 512 numbers of an audio embedding, `P` = 10
prefix vectors, `D` width of the language model, `L` tokens, `M` labels of a clip.
"""

import hashlib
import os
import shutil
import warnings

import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    ClapAudioModelWithProjection,
    GenerationMixin,
    PreTrainedModel,
    modeling_utils,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.clap.modeling_clap import ClapAudioAttention, ClapAudioModelOutput
from transformers.utils import logging

try:
    # From a local folder, transformers 5.6 copies only the files that are imported here, not those that they import.
    from .attribution_rgmc import ExplainsCaptions
    from .audio_rgmc import AudioError  # noqa: F401
    from .captions_rgmc import join_candidates, left_pad
    from .configuration_rgmc import RGMCConfig
    from .feature_extraction_rgmc import RGMCFeatureExtractor  # noqa: F401
    from .generation_rgmc import SELECTIONS, default_generation_config, generate_consensus, rename_cache
    from .hearing_rgmc import hear  # noqa: F401
    from .layers_rgmc import (
        RGMCAudioSelfAttention,
        RGMCMapper,
        RGMCOutput,
        RGMCWordHead,
        embedding_distance,
        label_positions,
        mask_stripes,
    )
    from .model_card_rgmc import PushesCheckpoint
    from .noise_rgmc import find_noise  # noqa: F401
    from .pipeline_rgmc import MusicCaptioningPipeline  # noqa: F401
    from .pretrained_rgmc import load_clap_audio, load_text_model
    from .processing_rgmc import RGMCProcessor  # noqa: F401
    from .retrieval_rgmc import DATASTORE_FILES, CaptionDatastore, Retrieved
    from .search_rgmc import EmbeddingIndex  # noqa: F401
    from .songs_rgmc import make_rows  # noqa: F401
    from .span_settings_rgmc import SpanSettings  # noqa: F401
    from .spans_rgmc import find_spans  # noqa: F401
    from .statistics_rgmc import RGMCAudioStatistics
except ImportError:
    import pipeline_rgmc  # noqa: F401
    from attribution_rgmc import ExplainsCaptions
    from captions_rgmc import join_candidates, left_pad
    from configuration_rgmc import RGMCConfig
    from generation_rgmc import SELECTIONS, default_generation_config, generate_consensus, rename_cache
    from layers_rgmc import (
        RGMCAudioSelfAttention,
        RGMCMapper,
        RGMCOutput,
        RGMCWordHead,
        embedding_distance,
        label_positions,
        mask_stripes,
    )
    from model_card_rgmc import PushesCheckpoint
    from pretrained_rgmc import load_clap_audio, load_text_model
    from retrieval_rgmc import DATASTORE_FILES, CaptionDatastore, Retrieved
    from statistics_rgmc import RGMCAudioStatistics

logger = logging.get_logger(__name__)

# Since transformers 5.21 a decoder can compute the logits of different positions in each row.
KEEPS_POSITIONS = hasattr(modeling_utils, "slice_logits_to_keep")


class RGMCModel(ExplainsCaptions, PushesCheckpoint, PreTrainedModel, GenerationMixin):
    """
    Captions music from its sound and from the caption of the most similar song in a datastore.

    `audio_tower` is CLAP's HTS-AT with its projection (`f`), `mapper` the two-layer MLP `g`, `text_model` the decoder.
    `datastore` is the [`CaptionDatastore`] that [`~RGMCModel.generate`] retrieves from, or `None`. `datastore_class` is
    that class, so that code loaded from the Hub can be used without an import.
    """

    config: RGMCConfig
    config_class = RGMCConfig
    datastore_class = CaptionDatastore
    base_model_prefix = ""
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # The datastore holds float32 embeddings of this encoder, whatever precision the decoder is loaded in.
    _keep_in_fp32_modules_strict = ["audio_tower"]

    def __init__(self, config: RGMCConfig):
        super().__init__(config)
        # CLAP itself has only eager attention and cannot be made with another.
        eager = config.audio_config._attn_implementation == "eager"
        config.audio_config._attn_implementation = "eager"
        self.audio_tower = ClapAudioModelWithProjection(config.audio_config)
        if config.audio_statistics:
            self.audio_tower.statistics = RGMCAudioStatistics(config.audio_config.projection_dim)
        if not eager:
            self._use_fused_audio_attention()
        self.mapper = RGMCMapper(config) if config.uses_audio else None
        self.text_model = AutoModelForCausalLM.from_config(config.text_config)
        self.word_head = RGMCWordHead(config) if config.words else None
        self.text_model.loss_type = "ForCausalLM"  # transformers cannot infer it from GPT2LMHeadModel, and warns
        self.datastore: CaptionDatastore | None = None
        self.loaded_revision: str | None = None  # of its repository, where `from_pretrained` was given one
        if not config.uses_audio:
            self.freeze_audio_tower()
        self.post_init()
        self.generation_config = default_generation_config(config)

    def _init_weights(self, module: nn.Module):
        # Called only for the mapper and the word head: the other parts initialise themselves. PyTorch's default, as in
        # the paper's code; transformers would use the decoder's `initializer_range`.
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def _use_fused_audio_attention(self):
        for module in self.audio_tower.modules():
            if isinstance(module, ClapAudioAttention):
                original = module.self
                module.self = RGMCAudioSelfAttention(
                    self.config.audio_config,
                    original.all_head_size,
                    original.num_attention_heads,
                    original.window_size,
                )
        self.config.audio_config._attn_implementation = "sdpa"

    # -- the parts ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_audio_text_pretrained(cls, audio_model: str, text_model: str, **config_kwargs) -> "RGMCModel":
        """
        Joins a pretrained CLAP and a pretrained causal language model with a new mapper (section 4). What was loaded is
        recorded in `config.audio_model_source` and `config.text_model_source`.

        Args:
            audio_model (`str`):
                Hub id or folder of a `ClapModel` without fusion (`"laion/larger_clap_music"`), or a checkpoint of
                LAION's own code, as a local file or as `repo_id/file` on the Hub
                (`"lukewys/laion_clap/music_audioset_epoch_15_esc_90.14.pt"`).
            text_model (`str`):
                Hub id or folder of a causal language model (`"openai-community/gpt2"`).
            config_kwargs:
                Further fields of [`RGMCConfig`].

        Raises:
            `OSError`: If a part cannot be found.
            `ValueError`: If weights of a part are missing or unknown.
            `StrictDataclassError`: If the CLAP is a `ClapModel` with fusion.
        """
        audio_config, audio_weights, audio_source = load_clap_audio(audio_model)
        text, text_source = load_text_model(text_model)
        # Copies of the configurations: one that another model owns would lose its attention setting here and fall back
        # to eager attention. `_name_or_path` goes, because it may be a path on this machine.
        text_config = text.config.to_dict()
        text_config.pop("_name_or_path", None)
        config = cls.config_class(
            audio_config=audio_config,
            text_config=text_config,
            audio_model_source=audio_source,
            text_model_source=text_source,
            **config_kwargs,
        )
        model = cls(config)
        model.audio_tower.load_state_dict(audio_weights)
        model.text_model.load_state_dict(text.state_dict())
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.text_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module):
        self.text_model.set_output_embeddings(value)

    def freeze_audio_tower(self):
        """Stops the training of the audio encoder. Its dropout then stays off, even after `model.train()`."""
        self.audio_tower.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "RGMCModel":
        """
        Sets the training mode as `nn.Module.train` does, but leaves a frozen audio encoder in evaluation mode. The
        batch norm of the encoder's mel bins always stays in evaluation mode: with batch statistics the loss would
        depend on how a batch is cut into processes and steps.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            self.audio_tower.eval()
        self.audio_tower.audio_model.audio_encoder.batch_norm.eval()
        return self

    def set_log_mel_statistics(self, mean: torch.Tensor, variance: torch.Tensor):
        """
        Sets the mean and variance (dB and dB², each `(F,)`) by which the encoder's batch norm standardises log-mels.
        Needed once before an encoder is trained from scratch; a pretrained one brings its own.
        """
        batch_norm = self.audio_tower.audio_model.audio_encoder.batch_norm
        batch_norm.running_mean.copy_(mean)
        batch_norm.running_var.copy_(variance)

    def set_audio_statistics(self, mean: torch.Tensor, deviation: torch.Tensor):
        """Sets the mean and the deviation, each `(S,)`, that standardise the statistics of clips."""
        self.audio_tower.statistics.mean.copy_(mean)
        self.audio_tower.statistics.deviation.copy_(deviation)

    def set_words(self, words: list[str]):
        """Gives the model a new word head, which predicts these words of captions from the audio embedding."""
        self.config.words = words
        self.word_head = RGMCWordHead(self.config).to(self.device)

    # -- the method ---------------------------------------------------------------------------------------------------

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """
        Embeds clips with the audio encoder `f` (section 3.1). The dot product of two embeddings is their similarity.

        Args:
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`):
                Log-mel spectrograms in dB.

        Returns:
            `torch.FloatTensor` of shape `(B, E)`: L2-normalised embeddings in float32.

        Raises:
            `ValueError`: If `input_features` have another shape.
        """
        return nn.functional.normalize(self._encode(input_features).audio_embeds.float(), dim=-1)

    def embed_steps(self, input_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Embeds clips as [`~RGMCModel.embed_audio`] does, and from the same pass returns the encoder's states over time.

        Args:
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`):
                Log-mel spectrograms in dB.

        Returns:
            `tuple[torch.FloatTensor, torch.FloatTensor]`: The embeddings `(B, E)`, and states `(B, S, C)` in float32 of
            `S` steps that divide a clip evenly: with HTS-AT 32 steps of 0.3125 s. Their `C` numbers are those of the
            frequency bands one after the other.

        Raises:
            `ValueError`: If `input_features` have another shape.
        """
        outputs = self._encode(input_features)
        states = outputs.last_hidden_state.float().flatten(1, 2).transpose(1, 2)  # (B, C, bands, S) to (B, S, C)
        return nn.functional.normalize(outputs.audio_embeds.float(), dim=-1), states

    def _encode(self, input_features: torch.Tensor) -> ClapAudioModelOutput:
        bins = self.config.audio_config.num_mel_bins
        if input_features.ndim != 4 or (input_features.shape[1], input_features.shape[3]) != (1, bins):
            raise ValueError(
                f"`input_features` must be log-mels of shape (B, 1, T, {bins}), got {tuple(input_features.shape)}: "
                "the processor makes them from files and waveforms"
            )
        dtype = self.audio_tower.audio_projection.linear1.weight.dtype
        input_features = input_features.to(self.device, dtype)
        if self.audio_tower.training and self.config.spec_augment:
            mean = self.audio_tower.audio_model.audio_encoder.batch_norm.running_mean
            input_features = mask_stripes(input_features, mean)
        outputs = self.audio_tower(input_features=input_features)
        if self.config.audio_statistics:
            outputs.audio_embeds = outputs.audio_embeds + self.audio_tower.statistics(input_features)
        return outputs

    def join_inputs(
        self,
        audio_embeds: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        prefix_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Joins the prefix `e(x) = g(f(x))` and the candidate `ỹ` (section 3.2): decoder inputs `(B, P + L, D)` and their
        attention mask `(B, P + L)`. `prefix_mask` `(B,)` is 0 for the clips whose prefix the decoder must not see.
        """
        inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, L, D)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.config.uses_audio:
            if len(audio_embeds) != len(input_ids):
                raise ValueError(
                    f"Got {len(audio_embeds)} clips but candidates for {len(input_ids)}: they must match 1:1"
                )
            prefix = self.mapper(audio_embeds.to(self.mapper.linear1.weight.dtype)).to(inputs_embeds.dtype)  # (B, P, D)
            inputs_embeds = torch.cat([prefix, inputs_embeds], dim=1)  # (B, P + L, D)
            seen = attention_mask.new_ones(prefix.shape[:2])
            if prefix_mask is not None:
                seen = seen * prefix_mask[:, None]
            attention_mask = torch.cat([seen, attention_mask], dim=1)
        return inputs_embeds, attention_mask

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        max_label_length: int | None = None,
        word_labels: torch.Tensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        prefix_loss: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """
        Computes the probabilities and the loss of captions, `p(y | e(x) ⊕ ỹ)` with `e(x) = g(f(x))` (section 3.3).

        Args:
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`, *optional*):
                Log-mel spectrograms in dB. Not needed with `audio_embeds`.
            input_ids (`torch.LongTensor` of shape `(B, L)`):
                Candidate, separator and, for teacher forcing, the caption and its EOS, without the prefix.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*):
                1 for tokens, 0 for padding, on either side. Positions are counted from it.
            audio_embeds (`torch.FloatTensor` of shape `(B, E)`, *optional*):
                What [`~RGMCModel.embed_audio`] returns.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*):
                `input_ids` where a token is to be learned (the caption and its EOS), -100 elsewhere.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Divisor of the summed cross entropy. By default the number of labels that are not -100.
            inputs_embeds, position_ids, use_cache, logits_to_keep:
                As in the decoder's own `forward`. `generate` passes the joined inputs as `inputs_embeds`.
            max_label_length (`int`, *optional*):
                With `labels`: the largest number `M` of labels of a clip that are not -100, or any larger one. Logits
                are then computed only at the positions that predict a label; the loss is the same. transformers before
                5.21 still computes all of them. Count it where the batch is made, because counting it here would make
                a GPU wait. Labels beyond the number are lost.
            word_labels (`torch.FloatTensor` of shape `(B, len(config.words))`, *optional*):
                With `labels`: 1 where the caption of a clip has a word of `config.words`, else 0, or -100 to ignore it.
            prefix_mask (`torch.LongTensor` of shape `(B,)`, *optional*):
                0 for the clips whose prefix is masked, so that the decoder has the candidates alone; 1 for the others.
            prefix_loss (`bool`, defaults to `False`):
                With `labels`: whether to compute how far prefixes are from the token embeddings.
            cache or past_key_values (`Cache`, *optional*):
                Keys and values of what came before `input_ids`; no audio is needed then. Both names are accepted,
                whichever this version of transformers uses.

        Returns:
            `CausalLMOutputWithPast` with `loss` (when `labels` are given), `logits` of shape `(B, P + L, vocabulary)`,
            or `(B, M, vocabulary)` with `max_label_length`, and the cache; with `word_labels` or `prefix_loss` an
            [`RGMCOutput`], which also has `word_loss` or `prefix_loss`.

        Raises:
            `ValueError`: If the model needs audio and there is neither audio nor a cache.
        """
        rename_cache(kwargs, self.text_model.forward)
        if inputs_embeds is None and (input_features is not None or audio_embeds is not None):
            if self.config.uses_audio and audio_embeds is None:
                audio_embeds = self.embed_audio(input_features)
            inputs_embeds, attention_mask = self.join_inputs(audio_embeds, input_ids, attention_mask, prefix_mask)
            if labels is not None:
                prefix_labels = labels.new_full((len(labels), inputs_embeds.shape[1] - labels.shape[1]), -100)
                labels = torch.cat([prefix_labels, labels], dim=1)
        elif inputs_embeds is None:
            if self.config.uses_audio and not any(isinstance(value, Cache) for value in kwargs.values()):
                raise ValueError(
                    f"A model with conditioning '{self.config.conditioning}' needs `input_features` or `audio_embeds`, "
                    "or the cache of a call that had them"
                )
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if position_ids is None and attention_mask is not None:
            # By default decoders count positions from the left edge of the batch, padding included.
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        if labels is not None and max_label_length is not None and KEEPS_POSITIONS:
            logits_to_keep, kwargs["shift_labels"] = label_positions(labels, max_label_length)
        outputs = self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        if word_labels is None and not prefix_loss:
            return outputs
        num_items = kwargs.get("num_items_in_batch")
        num_items = labels.ne(-100).sum() if num_items is None else num_items
        outputs = RGMCOutput(**outputs)
        if word_labels is not None:
            outputs.word_loss = self.word_head(audio_embeds, word_labels) / num_items
        if prefix_loss:
            table = self.get_input_embeddings().weight
            words = len(table) - len(self.config.similarity_token_ids)
            distances = embedding_distance(inputs_embeds[:, : self.config.prefix_length], table[:words])  # (B,)
            outputs.prefix_loss = (distances * labels.ne(-100).any(1)).sum() / num_items
        return outputs

    @torch.no_grad()
    def retrieve(self, audio_embeds: torch.Tensor, exclude_ids: list[str | None] | None = None) -> Retrieved:
        """
        Retrieves the candidates of each clip: captions of the songs with the largest dot product (section 3.2).

        Args:
            audio_embeds (`torch.FloatTensor` of shape `(B, E)`):
                What [`~RGMCModel.embed_audio`] returns.
            exclude_ids (`list[str | None]`, *optional*):
                Id of the row that must not be the candidate of each clip: its own.

        Raises:
            `ValueError`: If the model has no datastore.
        """
        if self.datastore is None:
            raise ValueError("This model has no datastore to retrieve from: give it one with `set_datastore`")
        return self.datastore.search(audio_embeds, k=self.config.num_candidates, exclude_ids=exclude_ids)

    @property
    def retrieves(self) -> bool:
        """Whether `generate` retrieves candidates when it is given none."""
        return self.config.uses_candidate and bool(self.datastore)  # `False` for an empty one, too

    def prompt_ids(
        self, audio_embeds: torch.Tensor, found: Retrieved | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns the left-padded `input_ids` and `attention_mask`, each `(B, L)`, of the candidates in `found`, or of
        those retrieved now for the embeddings `(B, E)`.
        """
        candidates: list[list[list[int]]] = [[]] * len(audio_embeds)
        similarities: list[list[float]] = [[]] * len(audio_embeds)
        if self.retrieves:
            found = found or self.retrieve(audio_embeds)
            candidates, similarities = found.input_ids, found.similarities
        elif self.config.conditioning == "candidate":
            raise ValueError(
                "This model captions from candidates alone and has none: pass `candidates=` to the processor, "
                "or give the model a datastore with `model.set_datastore(...)`"
            )
        elif self.config.uses_candidate:
            logger.warning_once(
                "This model has no datastore, or an empty one, and was given no candidates: "
                "it captions from the audio alone"
            )
        return self.encode_prompts(candidates, similarities)

    def encode_prompts(
        self, candidates: list[list[list[int]]], similarities: list[list[float]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns the left-padded `input_ids` and `attention_mask`, each `(B, L)`, of the tokens of each clip's
        candidates; `similarities` are those of their songs to the clip.
        """
        tokens = (self.config.separator_token_id, self.config.similarity_token_ids)
        prompts = [join_candidates(own, tokens[0], scores, tokens[1]) for own, scores in zip(candidates, similarities)]
        input_ids, attention_mask = left_pad(prompts, tokens[0])
        return input_ids.to(self.device), attention_mask.to(self.device)

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        selection: str | None = None,
        exclude_ids: list[str | None] | None = None,
        **kwargs,
    ):
        """
        Captions clips (section 3.3): beam search with 5 beams in which no trigram appears twice, unless the saved
        generation configuration or `kwargs` say otherwise.

        The trigram rule sees only the generated caption, so a candidate may be copied.

        Args:
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`, *optional*):
                Log-mel spectrograms in dB. Not needed with `audio_embeds`.
            input_ids, attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Candidates as the processor encodes them, padded on the left. By default they are retrieved from
                `datastore`; without a datastore the caption comes from the audio alone.
            audio_embeds (`torch.FloatTensor` of shape `(B, E)`, *optional*):
                What [`~RGMCModel.embed_audio`] returns.
            selection (`str`, defaults to `config.selection`):
                `"best"` is the most probable caption that the beam search finds, as in the paper. `"consensus"` takes
                the captions of several similar songs in turn, and chooses the caption that the others agree with most:
                [`generate_consensus`], which has further arguments. Pass it the `tokenizer`, too.
            exclude_ids (`list[str | None]`, *optional*):
                As in [`~RGMCModel.retrieve`].
            kwargs:
                Anything that `GenerationMixin.generate` takes.

        Returns:
            `torch.LongTensor` of shape `(B, L')` with the tokens of the captions, or what `return_dict_in_generate`
            asks for.

        Raises:
            `ValueError`: If audio or candidates that the model needs are missing, if candidates are padded on the
            right, or if prompt and caption are too long for the decoder.
        """
        if audio_embeds is None and input_features is not None:
            audio_embeds = self.embed_audio(input_features)
        if audio_embeds is None and (self.config.uses_audio or input_ids is None):
            raise ValueError(
                "`generate` needs `input_features` or `audio_embeds`: call it as `generate(**processor(audio=...))`"
            )
        selection = selection or self.config.selection
        if selection not in SELECTIONS:
            raise ValueError(f"selection {selection!r}: expected one of {', '.join(SELECTIONS)}")
        if audio_embeds is not None:
            audio_embeds = audio_embeds.to(self.device)
        if selection == "consensus":
            return generate_consensus(self, audio_embeds, input_ids, attention_mask, exclude_ids, **kwargs)
        if input_ids is None:
            found = self.retrieve(audio_embeds, exclude_ids) if exclude_ids and self.retrieves else None
            input_ids, attention_mask = self.prompt_ids(audio_embeds, found)
        elif attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError(
                "`input_ids` are padded on the right, so the caption would continue the padding: "
                "pad them on the left, as the processor does"
            )
        if attention_mask is not None:
            attention_mask = attention_mask.to(self.device)
        inputs_embeds, attention_mask = self.join_inputs(audio_embeds, input_ids.to(self.device), attention_mask)
        self._check_length(inputs_embeds.shape[1], kwargs)
        rename_cache(kwargs, super().prepare_inputs_for_generation)
        with warnings.catch_warnings():
            # transformers warns that the trigram rule sees only the new tokens: that is what we want.
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size` with `inputs_embeds`")
            return super().generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def _check_length(self, prompt_length: int, kwargs: dict):
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        new = kwargs.get("max_new_tokens") or (kwargs.get("generation_config") or self.generation_config).max_new_tokens
        if limit is not None and prompt_length + (new or 1) > limit:
            raise ValueError(
                f"Prefix and candidate take {prompt_length} positions and `max_new_tokens` is {new}, "
                f"but the decoder has only {limit}: "
                "pass a smaller `max_new_tokens`, or shorten the candidates (`processor.max_candidate_length`)"
            )

    # -- datastore and files ------------------------------------------------------------------------------------------

    def encoder_fingerprint(self) -> str:
        """Computes the SHA-256 of the audio encoder's weights: a datastore belongs to the encoder that embedded it."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.audio_tower.state_dict().items()):
            digest.update(name.encode())
            if hasattr(tensor, "full_tensor"):  # sharded by FSDP: all processes take part
                tensor = tensor.full_tensor()
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def set_datastore(self, datastore: CaptionDatastore | str | os.PathLike | None):
        """
        Gives the model the captions that it retrieves from.

        Args:
            datastore (`CaptionDatastore`, `str`, `os.PathLike` or `None`):
                A datastore, or the folder or Hub id to load one from; `None` removes the model's own.

        Raises:
            `FileNotFoundError` or `OSError`: If there is no datastore in the folder or repository.
            `TypeError`: If it is anything else.
            `ValueError`: If another encoder made its embeddings, or if its captions are tokens of another decoder,
            too long for this one, or follow another rule of normalisation.
        """
        if isinstance(datastore, (str, os.PathLike)):
            datastore = self.datastore_class.from_pretrained(datastore)
        if datastore is not None:
            self._check_datastore(datastore)
        self.datastore = datastore

    def _check_datastore(self, datastore: CaptionDatastore):
        if not hasattr(datastore, "encoder_fingerprint"):
            raise TypeError(
                f"Expected a CaptionDatastore, its folder or Hub id, or None, got {datastore!r}: "
                "`CaptionDatastore.build(model, rows)` makes a datastore"
            )
        if datastore.encoder_fingerprint != self.encoder_fingerprint():
            raise ValueError(
                f"The datastore ({len(datastore)} captions) was embedded by another audio encoder "
                f"(fingerprint {datastore.encoder_fingerprint[:12]}…, the model's {self.encoder_fingerprint()[:12]}…), "
                "so its similarities would mean nothing. Rebuild it with this model: "
                "`python build_datastore.py --model <checkpoint> --dataset <corpus> --output_dir <folder>`, "
                "or `CaptionDatastore.build(model, rows)`. "
                "To load a checkpoint without its own datastore, pass `load_datastore=False`. "
                "If the model was cast by hand (`model.half()`), load it with `dtype=` instead"
            )
        vocab_size = self.config.text_config.vocab_size
        if datastore.vocab_size not in (None, vocab_size):
            raise ValueError(
                f"The datastore ({len(datastore)} captions) holds tokens for a vocabulary of {datastore.vocab_size}, "
                f"but this model's has {vocab_size}: they would be other captions. "
                "Rebuild it with this model: `python build_datastore.py ...`, or `CaptionDatastore.build(model, rows)`"
            )
        if datastore.largest_token >= vocab_size:
            raise ValueError(
                f"The datastore ({len(datastore)} captions) holds the token {datastore.largest_token}, "
                f"but this model's vocabulary ends at {vocab_size - 1}: "
                "rebuild it with this model: `python build_datastore.py ...`, or `CaptionDatastore.build(model, rows)`"
            )
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        taken = self.config.prefix_length + datastore.longest_caption + 1  # and the separator
        taken += self.config.candidate_similarity
        if self.config.uses_candidate and limit is not None and taken >= limit:
            raise ValueError(
                f"The datastore ({len(datastore)} captions) holds a caption of {datastore.longest_caption} tokens, "
                f"which takes {taken} positions with the prefix, but the decoder has only {limit}: "
                "rebuild the datastore with a smaller `max_candidate_length` of the processor"
            )
        rule = self.config.caption_normalization
        if datastore.caption_normalization != rule:
            raise ValueError(
                f"The datastore ({len(datastore)} captions) has spellings that this model does not know: "
                f"it was normalised by the rule '{datastore.caption_normalization}', but this model by '{rule}' "
                "(`caption_normalization`). "
                "Rebuild it with this model: `python build_datastore.py ...`, or `CaptionDatastore.build(model, rows)`"
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args, load_datastore: bool = True, **kwargs
    ):
        """
        Loads a checkpoint as `PreTrainedModel.from_pretrained` does, and with it the `datastore/` of the checkpoint.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Hub id or folder.
            load_datastore (`bool`, defaults to `True`):
                Whether to load the datastore, if there is one.

        Raises:
            `OSError`: If the checkpoint, a file of it or the datastore that it should have cannot be found, or if a
            file is damaged.
            `EntryNotFoundError`: If the folder holds no weights, like that of the code itself.
        """
        hub_kwargs = {
            name: kwargs[name]
            for name in ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            if name in kwargs
        }
        folder = os.path.normpath(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder", "")))
        if os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, "config.json")) and "config" not in kwargs:
            raise OSError(f"{folder} is not a checkpoint: it has no config.json")  # transformers would use defaults
        brings_weights = kwargs.get("state_dict") is not None or "gguf_file" in kwargs
        if os.path.isdir(folder) and not brings_weights and not _has_weights(folder):
            # After an OSError `pipeline` would try again and print the tracebacks of both.
            raise EntryNotFoundError(
                f"{folder} holds the code and the configuration but no weights: give a trained checkpoint"
            )
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            datastore = None
            if load_datastore:
                datastore = CaptionDatastore.from_checkpoint(pretrained_model_name_or_path, **hub_kwargs)
        except SafetensorError as error:  # does not name the file
            raise OSError(
                f"A .safetensors file of {pretrained_model_name_or_path} is damaged or cut short ({error}): "
                "copy or download it again"
            ) from error
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        for module in model.audio_tower.modules():
            for name in ("relative_position_index", "num_batches_tracked"):
                if isinstance(buffer := getattr(module, name, None), torch.Tensor):
                    setattr(module, name, buffer.long())  # `_keep_in_fp32_modules_strict` makes integers floats too
        model.loaded_revision = kwargs.get("revision")
        if not load_datastore:
            return loaded
        if datastore is None and model.config.datastore_rows > 0:
            raise OSError(
                f"{pretrained_model_name_or_path} has a datastore of {model.config.datastore_rows} captions, but its "
                f"files {', '.join(DATASTORE_FILES)} in datastore/ cannot be found: "
                "complete the folder, or check the connection"
            )
        model.set_datastore(datastore)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args, is_main_process: bool = True, **kwargs):
        """Saves a checkpoint as `PreTrainedModel.save_pretrained` does, and its datastore in `datastore/` beside it."""
        self.set_datastore(self.datastore)  # refuses one whose encoder has been trained since
        self.config.datastore_rows = 0 if self.datastore is None else len(self.datastore)
        if is_main_process:
            directory = os.path.join(save_directory, "datastore")
            if self.datastore is None:
                shutil.rmtree(directory, ignore_errors=True)
            else:
                self.datastore.save_pretrained(directory)
        super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)


def _has_weights(folder: str) -> bool:
    return any(name.endswith((".safetensors", ".bin")) for name in os.listdir(folder))


RGMCModel.register_for_auto_class("AutoModel")
