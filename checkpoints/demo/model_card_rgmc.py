"""Writes the model card of a checkpoint, for `train.py` and, in place of transformers' template, for `push_to_hub`."""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import (
    CommitInfo,
    ModelCard,
    ModelCardData,
    create_branch,
    create_repo,
    file_exists,
    upload_folder,
)
from transformers import PreTrainedConfig

try:
    from .configuration_rgmc import TESTED_TRANSFORMERS
except ImportError:
    from configuration_rgmc import TESTED_TRANSFORMERS

CARD = """---
{metadata}
---

# {title}: {name}

{about}

```python
from transformers import pipeline

checkpoint = "{checkpoint}"  # the id of this repository, or its folder
captioner = pipeline("music-captioning", model=checkpoint, trust_remote_code=True)
print(captioner("song.mp3"))  # {{"caption": …, "score": …, "candidates": [{{"id": …, "text": …, "similarity": …, …}}]}}
```

`trust_remote_code=True` runs the code in this repository, which knows the task `music-captioning`
(`audio-text-to-text` is the category of the Hub). The model and the processor can also be loaded by themselves:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
inputs = processor(audio=["song.mp3"], return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True))
```

Both need transformers {oldest} or newer (tested up to {newest}), torch, av and soxr. A datastore also needs datasets
and faiss-cpu.
{datastore}
Captions are normalised by the rule `{rule}` (`caption_normalization`; see `normalize_caption` in `captions_rgmc.py`).

{sections}## Limits and biases

The model describes the middle 10 seconds of a song in the wording of its training captions, and may repeat captions of
the datastore word for word. The paper's ethical statement applies:

- Captions by a machine do not replace those by people, least of all for those who rely on captions for accessibility.
- Genres that are rare in the training data are described worse.
- Problematic descriptions that people wrote return, such as Eurocentric phrases ("oriental", "exotic").
- Singers may be misgendered.
- What copyright says about training on such corpora is unsettled.

## Licence

Code: MIT. Weights: {model_license}. Captions in the datastore: {datastore_license}.
"""
ABOUT = """\
RGMC listens to ten seconds of a song, looks up how people described the most similar song in its datastore, and writes
a description of its own: [Retrieval Guided Music Captioning via Multimodal
Prefixes](https://doi.org/10.24963/ijcai.2024/859) (Srivatsan et al., IJCAI 2024)."""
HUB_ARGUMENTS = "repo_id commit_message commit_description private token revision create_pr tags".split()
UNKNOWN = "not stated; see what the model was trained on and started from"


def model_card(
    name: str,
    config: PreTrainedConfig | None = None,
    sections: str = "",
    model_license: str | None = None,
    datastore_license: str | None = None,
    **metadata,
) -> str:
    """
    Writes the text of a card.

    Args:
        name (`str`):
            Id of the repository, or name of the checkpoint's folder.
        config ([`RGMCConfig`], *optional*):
            Configuration of the model. It names the pretrained parts and the size of the datastore.
        sections (`str`, *optional*, defaults to `""`):
            Markdown between the use and the limits.
        model_license, datastore_license (`str`, *optional*):
            Licences of the weights and of the datastore's captions, as the Hub's identifiers (`"cc-by-4.0"`).
        metadata:
            Further fields of `ModelCardData`.

    Returns:
        `str`: The text, with its metadata.
    """
    sources = [getattr(config, f"{part}_model_source", None) for part in ("audio", "text")]
    repositories = ["/".join(source["name"].split("/")[:2]) for source in sources if source and source["revision"]]
    rows = getattr(config, "datastore_rows", 0)
    warning = from_scratch_warning(config)
    tags = ["music", "music-captioning", *([] if hasattr(config, "about") else ["retrieval-augmented-generation"])]
    data = ModelCardData(
        **{
            "library_name": "transformers",
            "pipeline_tag": "audio-text-to-text",
            "license": model_license or "unknown",
            "code_license": "mit",
            "datastore_license": (datastore_license or "unknown") if rows else None,
            "base_model": repositories or None,
            **metadata,
            "tags": [*tags, *metadata.get("tags", ())],
        }
    )
    return CARD.format(
        metadata=data.to_yaml(),
        oldest=TESTED_TRANSFORMERS[0],
        newest=TESTED_TRANSFORMERS[1],
        name=name.split("/")[-1],
        title=getattr(config, "title", "RGMC"),
        about=getattr(config, "about", ABOUT),
        checkpoint=name,
        datastore=f"The datastore in `datastore/` holds {rows} captions.\n" if rows else "",
        rule=getattr(config, "caption_normalization", "paper"),
        sections=f"{warning}\n\n{sections}" if warning else sections,
        model_license=model_license or UNKNOWN,
        datastore_license=datastore_license or UNKNOWN,
    )


def from_scratch_warning(config: PreTrainedConfig | None) -> str | None:
    """
    What to tell the user of a model that was trained from scratch; None for a model of pretrained parts.

    Args:
        config ([`RGMCConfig`], *optional*):
            Of the model. Without a source of its audio encoder and of its decoder it was trained from scratch; its
            datastore says on how many clips.
    """
    if config is None or config.audio_model_source or config.text_model_source:
        return None
    clips = f" on {config.datastore_rows:,} clips" if config.datastore_rows else ""
    return f"This model was trained from scratch{clips}; do not expect useful captions of other music."


def is_hub_id(name) -> bool:
    """Whether `name` is an `owner/name` and not a local file or folder."""
    return isinstance(name, str) and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


class PushesCheckpoint:
    """
    Makes a class of transformers, when placed before it in the bases, push what its `save_pretrained` writes (datastore
    included), with a card of ours if the repository has none.
    """

    def save_pretrained(self, save_directory: str | os.PathLike, *args, push_to_hub: bool = False, **kwargs):
        """
        Saves as the class of transformers does.

        Args:
            save_directory (`str` or `os.PathLike`):
                Folder to write into; made if needed.
            push_to_hub (`bool`, defaults to `False`):
                Whether to push it as well, as [`~PushesCheckpoint.push_to_hub`] does.
            kwargs:
                Arguments of [`~PushesCheckpoint.push_to_hub`], where `repo_id` defaults to the name of the folder, and
                of the class's own `save_pretrained`.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if push_to_hub and kwargs.get("is_main_process", True):
            name = os.path.basename(os.path.normpath(save_directory))
            self.push_to_hub(**{"repo_id": name, **hub_kwargs})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
        **save_kwargs,
    ) -> CommitInfo:
        """
        Uploads what `save_pretrained` writes, in one commit. The arguments are those of transformers' `push_to_hub`;
        any others go to `save_pretrained`. Datastore files from an earlier push are deleted if this model has none of
        that name, because they would be taken for its own.
        """
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr") and not create_pr:
            create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        model = getattr(self, "model", self)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_kwargs)
            card = Path(folder, "README.md")
            if file_exists(repo_id, "README.md", revision=revision, token=token):  # it stays; only tags are added
                text = ModelCard.load(repo_id, token=token)
                text.data.tags = list(dict.fromkeys([*(text.data.tags or ()), *(tags or ())])) or None
            else:
                text = model_card(repo_id, getattr(model, "config", None), tags=tags or ())
            card.write_text(str(text), encoding="utf-8")
            return upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                delete_patterns="datastore/*" if hasattr(model, "datastore") else None,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )
