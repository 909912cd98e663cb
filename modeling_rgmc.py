"""
RGMC, Retrieval Guided Music Captioning via Multimodal Prefixes (Srivatsan et al., IJCAI 2024).

Shape letters: `B` clips, `T` = 1001 mel frames, `F` = 64 mel bins, `E` = 512 numbers of an audio embedding, `P` = 10
prefix vectors, `D` width of the language model, `L` tokens, `M` labels of a row; in the audio encoder `W` windows of a
clip, `S` = 64 patches of a window, `C` channels, `H` heads.
"""

import hashlib
import inspect
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    Cache,
    ClapAudioModelWithProjection,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    modeling_utils,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.clap.modeling_clap import ClapAudioAttention, ClapAudioSelfAttention
from transformers.utils import logging

try:
    from .configuration_rgmc import RGMCConfig

    # Of a local folder, transformers 5.6 copies what is imported here, and not what that imports in its turn.
    from .feature_extraction_rgmc import RGMCFeatureExtractor  # noqa: F401
    from .model_card_rgmc import PushesCheckpoint
    from .pretrained_rgmc import load_clap_audio, load_text_model
    from .processing_rgmc import RGMCProcessor  # noqa: F401
    from .retrieval_rgmc import DATASTORE_FILES, CaptionDatastore, Retrieved, join_candidates, left_pad
except ImportError:
    from configuration_rgmc import RGMCConfig
    from model_card_rgmc import PushesCheckpoint
    from pretrained_rgmc import load_clap_audio, load_text_model
    from retrieval_rgmc import DATASTORE_FILES, CaptionDatastore, Retrieved, join_candidates, left_pad

logger = logging.get_logger(__name__)

# Since transformers 5.21 a decoder can be asked for the logits of other positions in each row.
KEEPS_POSITIONS = hasattr(modeling_utils, "slice_logits_to_keep")

CACHE_NAMES = ("past_key_values", "cache")  # of the decoder's keys and values


class RGMCAudioSelfAttention(ClapAudioSelfAttention):
    """
    CLAP's window attention on `scaled_dot_product_attention`; the weights and their names are CLAP's.

    [`RGMCModel`] puts it in place of the original unless it is made with `attn_implementation="eager"` or
    `attn_implementation={"audio_config": "eager"}`. The original's `forward` still runs when attentions are asked for,
    and where the bias table is trained on the CPU: no fused kernel returns a gradient of the bias there, and what
    PyTorch falls back to works in float32 under bfloat16 autocast, slower than the original.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[torch.Tensor, ...]:
        trains_bias = torch.is_grad_enabled() and self.relative_position_bias_table.requires_grad
        if output_attentions or (trains_bias and hidden_states.device.type == "cpu"):
            return super().forward(hidden_states, attention_mask, output_attentions)
        return (self.fused_forward(hidden_states, attention_mask),)

    def fused_forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Windows `(B * W, S, C)` and the mask of a shifted layer `(W, S, S)`, or `None`, to `(B * W, S, C)`."""
        layers = (self.query, self.key, self.value)
        weight = torch.cat([layer.weight for layer in layers])  # (3 * C, C): one product instead of three
        bias = None if self.query.bias is None else torch.cat([layer.bias for layer in layers])
        projected = nn.functional.linear(hidden_states, weight, bias)  # (B * W, S, 3 * C)
        query, key, value = projected.unflatten(-1, (3, self.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)

        # `index_select`: on a GPU the gradient of plain indexing would sort the indices first.
        position_bias = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        position_bias = position_bias.T.unflatten(1, self.relative_position_index.shape)  # (H, S, S)
        if attention_mask is None:
            position_bias = position_bias.unsqueeze(0)  # the same for all windows: (1, H, S, S)
        else:
            # Windows count as heads, so that the clips share one mask: kernels take four dimensions, and a mask that
            # repeats in one of them.
            windows = len(attention_mask)
            position_bias = (position_bias + attention_mask.unsqueeze(1)).flatten(0, 1).unsqueeze(0)
            query, key, value = (part.unflatten(0, (-1, windows)).flatten(1, 2) for part in (query, key, value))
        position_bias = position_bias.to(query.dtype).contiguous()
        # cuDNN's attention, which PyTorch may prefer on a GPU, takes a bias but silently returns no gradient for it.
        kernels = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(kernels) if position_bias.requires_grad else nullcontext():
            context = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=position_bias, dropout_p=self.dropout.p if self.training else 0.0
            )
        if attention_mask is not None:
            context = context.unflatten(1, (windows, -1)).flatten(0, 1)  # (B * W, H, S, C / H)
        return context.transpose(1, 2).flatten(2)


class RGMCMapper(nn.Module):
    """The mapping network `g` (section 3.1): a two-layer MLP from one audio embedding to `P` prefix vectors."""

    def __init__(self, config: RGMCConfig):
        super().__init__()
        embedding_size = config.audio_config.projection_dim
        text_size = config.text_config.hidden_size
        hidden_size = config.mapper_hidden_size or config.prefix_length * text_size // 2
        self.prefix_shape = (config.prefix_length, text_size)
        # Numbers of a unit vector are about 1 / sqrt(E); a linear layer's default initialisation expects them about 1.
        self.input_scale = embedding_size**0.5
        self.linear1 = nn.Linear(embedding_size, hidden_size)
        self.activation = nn.Tanh()
        self.linear2 = nn.Linear(hidden_size, config.prefix_length * text_size)

    def forward(self, audio_embeds: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation(self.linear1(audio_embeds * self.input_scale))
        return self.linear2(hidden_states).unflatten(-1, self.prefix_shape)  # (B, P, D)


class RGMCModel(PushesCheckpoint, PreTrainedModel, GenerationMixin):
    """
    Captions music from its sound and from the caption of the most similar song of a datastore.

    `audio_tower` is CLAP's HTS-AT with its projection (`f`), `mapper` the two-layer MLP `g`, `text_model` the decoder.
    `datastore` is the [`CaptionDatastore`] that [`~RGMCModel.generate`] retrieves from, or `None`; `datastore_class` is
    that class, also where the code came from the Hub.
    """

    config: RGMCConfig
    config_class = RGMCConfig
    datastore_class = CaptionDatastore
    base_model_prefix = ""
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # The datastore holds float32 embeddings of this very encoder, whatever precision the decoder is loaded in.
    _keep_in_fp32_modules_strict = ["audio_tower"]

    def __init__(self, config: RGMCConfig):
        super().__init__(config)
        # CLAP itself knows no other attention, and refuses to be made with one.
        eager = config.audio_config._attn_implementation == "eager"
        config.audio_config._attn_implementation = "eager"
        self.audio_tower = ClapAudioModelWithProjection(config.audio_config)
        if not eager:
            self._use_fused_audio_attention()
        self.mapper = RGMCMapper(config) if config.uses_audio else None
        self.text_model = AutoModelForCausalLM.from_config(config.text_config)
        self.text_model.loss_type = (
            "ForCausalLM"  # transformers cannot tell it from the name GPT2LMHeadModel, and warns
        )
        self.datastore: CaptionDatastore | None = None
        self.loaded_revision: str | None = None  # of its repository, where it was loaded from a certain one
        if not config.uses_audio:
            self.freeze_audio_tower()
        self.post_init()
        self.generation_config = default_generation_config(config)

    def _init_weights(self, module: nn.Module):
        # Called for the mapper alone: both parts initialise themselves. PyTorch's default, as in the paper's code base,
        # and not the decoder's `initializer_range`, which transformers would take.
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
        Joins a pretrained CLAP and a pretrained causal language model; the mapper is new (section 4). What was loaded
        is kept as `config.audio_model_source` and `config.text_model_source`.

        Args:
            audio_model (`str`):
                Hub id or folder of an unfused `ClapModel`, such as `"laion/larger_clap_music"`, or a checkpoint of
                LAION's own code: a local file, or one on the Hub, such as
                `"lukewys/laion_clap/music_audioset_epoch_15_esc_90.14.pt"`.
            text_model (`str`): Hub id or folder of a causal language model, such as `"openai-community/gpt2"`.
            config_kwargs: Further fields of [`RGMCConfig`].

        Raises:
            `OSError`: when a part cannot be found; `ValueError`: when weights of a part are missing or unknown;
            `StrictDataclassError`: when the CLAP is a fused one of transformers.
        """
        audio_config, audio_weights, audio_source = load_clap_audio(audio_model)
        text, text_source = load_text_model(text_model)
        # Copies of the configurations: objects that another model owns lose their attention setting here and fall back
        # to eager attention. Without the place that the decoder was loaded from, which may be a path of this machine.
        text_config = text.config.to_dict()
        text_config.pop("_name_or_path", None)
        config = RGMCConfig(
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
        """Stops the training of the audio encoder; its dropout stays off from then on, also after `model.train()`."""
        self.audio_tower.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "RGMCModel":
        """
        As `nn.Module.train`, but a frozen audio encoder stays in evaluation mode, and so does the batch norm of its mel
        bins always: batch statistics would make the loss depend on how a batch is cut into processes and steps.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            self.audio_tower.eval()
        self.audio_tower.audio_model.audio_encoder.batch_norm.eval()
        return self

    def set_log_mel_statistics(self, mean: torch.Tensor, variance: torch.Tensor):
        """
        Sets the mean and the variance (dB, dB², each `(F,)`) that the encoder's batch norm standardises its log-mel
        with. Needed once before an encoder is trained from scratch; a pretrained one brings its own.
        """
        batch_norm = self.audio_tower.audio_model.audio_encoder.batch_norm
        batch_norm.running_mean.copy_(mean)
        batch_norm.running_var.copy_(variance)

    # -- the method ---------------------------------------------------------------------------------------------------

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """
        The audio encoder `f` (section 3.1): log-mel `(B, 1, T, F)` in dB to L2-normalised float32 embeddings `(B, E)`,
        whose dot product is their similarity.
        """
        bins = self.config.audio_config.num_mel_bins
        if input_features.ndim != 4 or (input_features.shape[1], input_features.shape[3]) != (1, bins):
            raise ValueError(
                f"`input_features` must be log-mels of shape (B, 1, T, {bins}), got {tuple(input_features.shape)}: the "
                "processor makes them of files and waveforms"
            )
        dtype = self.audio_tower.audio_projection.linear1.weight.dtype
        input_features = input_features.to(self.device, dtype)
        if self.audio_tower.training and self.config.spec_augment:
            mean = self.audio_tower.audio_model.audio_encoder.batch_norm.running_mean
            input_features = mask_stripes(input_features, mean)
        embeds = self.audio_tower(input_features=input_features).audio_embeds
        return nn.functional.normalize(embeds.float(), dim=-1)

    def join_inputs(
        self, audio_embeds: torch.Tensor | None, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`e(x) ⊕ ỹ` (section 3.2): decoder inputs `(B, P + L, D)` and their attention mask `(B, P + L)`."""
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
            attention_mask = torch.cat([attention_mask.new_ones(prefix.shape[:2]), attention_mask], dim=1)
        return inputs_embeds, attention_mask

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        max_label_length: int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """
        `p(y | e(x) ⊕ ỹ)` (section 3.3).

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`):
                Candidate, separator and, for teacher forcing, the caption and its EOS, without the prefix.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*):
                1 for tokens, 0 for padding, on either side. The positions are counted from it.
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`, *optional*):
                Log-mel spectrograms in dB. Not needed with `audio_embeds`.
            audio_embeds (`torch.FloatTensor` of shape `(B, E)`, *optional*):
                What [`~RGMCModel.embed_audio`] returns.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*):
                `input_ids` where a token is to be learned (the caption and its EOS), -100 elsewhere.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Divides the summed cross entropy; by default the number of labels that are not -100.
            max_label_length (`int`, *optional*):
                With `labels`: the largest number `M` of labels in a row that are not -100, or more. Logits are then
                computed at the positions that predict a label alone, with the same loss; not with transformers before
                5.21, which computes them all. To be counted where the batch is made: to count it here would make a GPU
                wait. With too small a number, labels are lost.
            cache or past_key_values (`Cache`, *optional*):
                Keys and values of what came before `input_ids`, which then continue it and need no audio. Either name
                is taken, whichever of them this version of transformers knows.

        Returns:
            `CausalLMOutputWithPast` with `loss` (when `labels` are given), `logits` of shape `(B, P + L, vocabulary)`,
            or `(B, M, vocabulary)` with `max_label_length`, and the cache.
        """
        rename_cache(kwargs, self.text_model.forward)
        if inputs_embeds is None and (input_features is not None or audio_embeds is not None):
            if self.config.uses_audio and audio_embeds is None:
                audio_embeds = self.embed_audio(input_features)
            inputs_embeds, attention_mask = self.join_inputs(audio_embeds, input_ids, attention_mask)
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
            # Decoders count positions from 0 at the left edge of the batch by default, padding included.
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        if labels is not None and max_label_length is not None and KEEPS_POSITIONS:
            logits_to_keep, kwargs["shift_labels"] = label_positions(labels, max_label_length)
        return self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @torch.no_grad()
    def retrieve(self, audio_embeds: torch.Tensor, exclude_ids: list[str | None] | None = None) -> Retrieved:
        """
        The candidates of each clip (section 3.2): the captions whose songs have the largest dot product with it,
        without the row of the datastore that has the clip's own id in `exclude_ids`.
        """
        if self.datastore is None:
            raise ValueError(
                "This model has no datastore to retrieve from: give it one with `model.set_datastore(...)`"
            )
        return self.datastore.search(audio_embeds, k=self.config.num_candidates, exclude_ids=exclude_ids)

    @property
    def retrieves(self) -> bool:
        """Whether `generate` looks up candidates where it is given none."""
        return self.config.uses_candidate and bool(self.datastore)  # an empty one holds nothing to look up

    def prompt_ids(
        self, audio_embeds: torch.Tensor, found: Retrieved | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Left-padded `input_ids` and `attention_mask`, each `(B, L)`, of the candidates that were found for embeddings
        `(B, E)`, or that are looked up now.
        """
        candidates = [[]] * len(audio_embeds)
        if self.retrieves:
            candidates = (found or self.retrieve(audio_embeds)).input_ids
        elif self.config.conditioning == "candidate":
            raise ValueError(
                "This model captions from a candidate alone, and it has none: pass `candidates=` to the processor, "
                "or give "
                "the model a datastore with `model.set_datastore(CaptionDatastore.from_pretrained(...))`"
            )
        elif self.config.uses_candidate:
            logger.warning_once(
                "This model has no datastore, or an empty one, and was given no candidates: it captions from the "
                "audio alone."
            )
        prompts = [join_candidates(token_ids, self.config.separator_token_id) for token_ids in candidates]
        input_ids, attention_mask = left_pad(prompts, self.config.separator_token_id)
        return input_ids.to(self.device), attention_mask.to(self.device)

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Captions clips (section 3.3): beam search with 5 beams in which no trigram appears twice, unless the saved
        generation configuration or `kwargs` say otherwise.

        The rule on trigrams sees the generated caption alone, so that the candidate may be copied.

        Args:
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`): Log-mel spectrograms in dB.
            input_ids, attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Candidates as the processor encodes them, padded on the left. Without them they are retrieved from
                `datastore`; without a datastore the caption comes from the audio alone.
            audio_embeds (`torch.FloatTensor` of shape `(B, E)`, *optional*): Instead of `input_features`.
            kwargs: Anything that `GenerationMixin.generate` takes.

        Returns:
            `torch.LongTensor` of shape `(B, L')` with the tokens of the captions, or what `return_dict_in_generate`
            asks for.
        """
        if audio_embeds is None and input_features is not None:
            audio_embeds = self.embed_audio(input_features)
        if audio_embeds is None and (self.config.uses_audio or input_ids is None):
            raise ValueError(
                "`generate` needs `input_features` or `audio_embeds`: call it as `generate(**processor(audio=...))`"
            )
        if input_ids is None:
            input_ids, attention_mask = self.prompt_ids(audio_embeds)
        elif attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError(
                "`input_ids` are padded on the right, and a caption would continue the padding: pad them on the "
                "left, as "
                "the processor does"
            )
        if attention_mask is not None:
            attention_mask = attention_mask.to(self.device)
        if audio_embeds is not None:
            audio_embeds = audio_embeds.to(self.device)
        inputs_embeds, attention_mask = self.join_inputs(audio_embeds, input_ids.to(self.device), attention_mask)
        self._check_length(inputs_embeds.shape[1], kwargs)
        rename_cache(kwargs, super().prepare_inputs_for_generation)
        with warnings.catch_warnings():
            # transformers warns that the trigram rule sees the new tokens alone; that is what we want.
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size` with `inputs_embeds`")
            return super().generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def _check_length(self, prompt_length: int, kwargs: dict):
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        new = kwargs.get("max_new_tokens") or (kwargs.get("generation_config") or self.generation_config).max_new_tokens
        if limit is not None and new is not None and prompt_length + new > limit:
            raise ValueError(
                f"Prefix and candidate take {prompt_length} positions and `max_new_tokens` is {new}, but the decoder "
                "has only "
                f"{limit}: pass a smaller `max_new_tokens`, or shorten the candidates "
                "(`processor.max_candidate_length`)"
            )

    # -- datastore and files ------------------------------------------------------------------------------------------

    def encoder_fingerprint(self) -> str:
        """SHA-256 of the audio encoder's weights: a datastore belongs to the encoder that made its embeddings."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.audio_tower.state_dict().items()):
            digest.update(name.encode())
            if hasattr(tensor, "full_tensor"):  # sharded by FSDP: all processes take part
                tensor = tensor.full_tensor()
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def set_datastore(self, datastore: CaptionDatastore | None):
        """
        Gives the model the captions that it retrieves from; `None` takes them away.

        Raises:
            `TypeError`: for anything but a datastore; `ValueError`: when another encoder made its embeddings, or its
            captions are tokens of another decoder, or normalised by another rule.
        """
        if datastore is not None and not hasattr(datastore, "encoder_fingerprint"):
            raise TypeError(
                f"Expected a CaptionDatastore or None, got {datastore!r}: `CaptionDatastore.from_pretrained(...)` "
                "loads one from a folder or the Hub, `CaptionDatastore.build(model, rows)` makes one"
            )
        if datastore is not None and datastore.encoder_fingerprint != self.encoder_fingerprint():
            raise ValueError(
                f"The datastore ({len(datastore)} captions) was embedded by another audio encoder (fingerprint "
                f"{datastore.encoder_fingerprint[:12]}…, this model's is {self.encoder_fingerprint()[:12]}…), so its "
                "similarities would mean nothing. Rebuild it with this model: `python build_datastore.py --model "
                "<checkpoint> --dataset <corpus> --output_dir <folder>`, or `CaptionDatastore.build(model, rows)`. A "
                "checkpoint whose own datastore this is loads with `load_datastore=False`; a model cast by hand "
                "(`model.half()`) differs too: load it with `dtype=` instead."
            )
        vocab_size = self.config.text_config.vocab_size
        if datastore is not None and datastore.vocab_size not in (None, vocab_size):
            raise ValueError(
                f"The datastore ({len(datastore)} captions) holds tokens of a decoder of {datastore.vocab_size} words, "
                f"this model's has {vocab_size}: they would be other captions. Rebuild it with this model: `python "
                "build_datastore.py ...`, or `CaptionDatastore.build(model, rows)`"
            )
        rule = self.config.caption_normalization
        if datastore is not None and datastore.caption_normalization != rule:
            raise ValueError(
                f"The datastore ({len(datastore)} captions) was normalised by the rule "
                f"'{datastore.caption_normalization}', this model by '{rule}' (`caption_normalization`), so its "
                "spellings are not those that the model knows. Rebuild it with this model: `python build_datastore.py "
                "...`, or `CaptionDatastore.build(model, rows)`"
            )
        self.datastore = datastore

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args, load_datastore: bool = True, **kwargs
    ):
        """
        As `PreTrainedModel.from_pretrained`; loads the checkpoint's `datastore/` too where it has one, and unless
        `load_datastore` is `False`.

        Raises:
            `OSError`: when the checkpoint is damaged or incomplete.
            `EntryNotFoundError`: when the folder holds no weights, as that of the code itself.
        """
        hub_kwargs = {
            name: kwargs[name]
            for name in ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            if name in kwargs
        }
        folder = os.path.normpath(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder", "")))
        if os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, "config.json")) and "config" not in kwargs:
            raise OSError(f"{folder} is no checkpoint: it has no config.json")  # transformers would take the defaults
        brings_weights = kwargs.get("state_dict") is not None or "gguf_file" in kwargs
        if os.path.isdir(folder) and not brings_weights and not _has_weights(folder):
            # `pipeline` answers an OSError with a second try and the tracebacks of both.
            raise EntryNotFoundError(
                f"{folder} holds the code and the configuration but no weights: give a trained checkpoint"
            )
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            datastore = None
            if load_datastore:
                datastore = CaptionDatastore.from_checkpoint(pretrained_model_name_or_path, **hub_kwargs)
        except SafetensorError as error:  # which does not name the file
            raise OSError(
                f"A .safetensors file of {pretrained_model_name_or_path} is damaged or cut short ({error}): copy or "
                "download it again"
            ) from error
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        for module in model.audio_tower.modules():
            for name in ("relative_position_index", "num_batches_tracked"):
                if isinstance(buffer := getattr(module, name, None), torch.Tensor):
                    setattr(module, name, buffer.long())  # `_keep_in_fp32_modules_strict` makes floats of integers too
        model.loaded_revision = kwargs.get("revision")
        if not load_datastore:
            return loaded
        if datastore is None and model.config.datastore_rows > 0:
            raise OSError(
                f"{pretrained_model_name_or_path} has a datastore of {model.config.datastore_rows} captions, but its "
                "files "
                f"{', '.join(DATASTORE_FILES)} in datastore/ cannot be found: complete the folder, or check the "
                "connection"
            )
        model.set_datastore(datastore)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args, is_main_process: bool = True, **kwargs):
        """As `PreTrainedModel.save_pretrained`; writes the datastore to `datastore/` beside the weights."""
        self.set_datastore(self.datastore)  # refuses one that the encoder has been trained away from
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


def rename_cache(arguments: dict, function: Callable):
    """
    Gives a key-value cache among `arguments` the name by which `function` takes it: `cache` since transformers 5.24,
    `past_key_values` before, and in the code of some decoders still.
    """
    for name, other in (CACHE_NAMES, CACHE_NAMES[::-1]):
        if name in arguments and other not in arguments:
            known = inspect.signature(function).parameters
            if name not in known and other in known:
                arguments[other] = arguments.pop(name)


def mask_stripes(log_mels: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """SpecAugment as in LAION's HTS-AT: sets 2 stripes of < 64 frames and 2 of < 8 mel bins of a clip to the mean."""
    masked = torch.zeros_like(log_mels, dtype=torch.bool)  # (B, 1, T, F)
    for dim, width in ((2, 64), (3, 8)):
        size = log_mels.shape[dim]
        shape = [len(log_mels), 1, 1, 1]
        position = torch.arange(size, device=log_mels.device).view([-1 if axis == dim else 1 for axis in range(4)])
        for _ in range(2):
            length = torch.randint(0, min(width, size), shape, device=log_mels.device)
            start = (torch.rand(shape, device=log_mels.device) * (size - length)).long()
            masked |= (position >= start) & (position < start + length)
    return torch.where(masked, mean.to(log_mels.dtype), log_mels)


def label_positions(labels: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    For labels `(B, L)` the positions whose logits predict one, in order, and these labels, each `(B, M)` with
    `M = length`. Rows with fewer labels are filled up with positions whose label is -100.
    """
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)  # what the logits of each position predict
    # Sorting has no result whose size depends on the values, which a GPU would have to report first.
    positions = targets.eq(-100).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]  # (B, M)
    return positions, targets.gather(1, positions)


def default_generation_config(config: RGMCConfig) -> GenerationConfig:
    """Beam search with 5 beams, no trigram twice (section 3.3), captions of up to 128 tokens."""
    eos_token_id = config.text_config.eos_token_id
    return GenerationConfig(
        num_beams=5,
        no_repeat_ngram_size=3,
        max_new_tokens=128,
        bos_token_id=config.separator_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id[0] if isinstance(eos_token_id, list) else eos_token_id,
    )


RGMCModel.register_for_auto_class("AutoModel")
