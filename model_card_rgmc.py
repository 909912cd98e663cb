"""The model card of a checkpoint, which `train.py` writes and `push_to_hub` puts in the place of transformers' form."""

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, delete_folder, file_exists
from transformers import PreTrainedConfig

CARD = """---
{metadata}
---

# RGMC: {name}

Captions music from its sound and from the caption of the most similar song of a datastore: Retrieval Guided Music
Captioning via Multimodal Prefixes (Srivatsan et al., IJCAI 2024).

```python
from transformers import pipeline

checkpoint = "{checkpoint}"  # the id of this repository, or its folder
captioner = pipeline("music-captioning", model=checkpoint, trust_remote_code=True)
print(captioner("song.mp3"))  # {{"caption": …, "score": …, "candidates": [{{"id": …, "text": …, "similarity": …, …}}]}}
```

Or, with the parts in hand:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
inputs = processor(audio=["song.mp3"], return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True))
```

This runs code of this repository, which needs transformers 5.6 or newer, torch, av and soxr, and for a datastore
datasets and faiss-cpu.
{datastore}
Captions are normalised by the rule `{rule}` (`caption_normalization`; `normalize_caption` in `processing_rgmc.py`).

{sections}## Limits and biases

The model describes the middle 10 seconds of a song, in the wording of its training captions. The paper's ethical
statement applies: to those who rely on captions for accessibility, a machine's are no substitute for people's; genres
that are rare in the training data are described worse; problematic descriptions that people wrote return, such as
Eurocentric phrases ("oriental", "exotic"); singers may be misgendered; and what copyright says of training on such
corpora is unsettled. Captions of the datastore may be repeated word by word.

## Licence

Code: MIT. Weights: {model_license}. Captions in the datastore: {datastore_license}.
"""
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
    The text of a card.

    Args:
        name (`str`): The id of the repository, or the name of the checkpoint's folder.
        config ([`RGMCConfig`], *optional*): Of the model: says what its parts were and what datastore it has.
        sections (`str`, *optional*): Markdown between the use and the limits.
        model_license, datastore_license (`str`, *optional*):
            Identifiers of the Hub, such as `"cc-by-4.0"`, of the weights and of the datastore's captions.
        metadata: Further fields of `ModelCardData`.
    """
    sources = [getattr(config, f"{part}_model_source", None) for part in ("audio", "text")]
    repositories = ["/".join(source["name"].split("/")[:2]) for source in sources if source and source["revision"]]
    rows = getattr(config, "datastore_rows", 0)
    data = ModelCardData(
        **{
            "library_name": "transformers",
            "pipeline_tag": "audio-text-to-text",
            "license": model_license or "unknown",
            "code_license": "mit",
            "datastore_license": (datastore_license or "unknown") if rows else None,
            "base_model": repositories or None,
            **metadata,
            "tags": ["music", "music-captioning", "retrieval-augmented-generation", *metadata.get("tags", ())],
        }
    )
    return CARD.format(
        metadata=data.to_yaml(),
        name=name.split("/")[-1],
        checkpoint=name,
        datastore=f"The datastore in `datastore/` holds {rows} captions.\n" if rows else "",
        rule=getattr(config, "caption_normalization", "paper"),
        sections=sections,
        model_license=model_license or UNKNOWN,
        datastore_license=datastore_license or UNKNOWN,
    )


def is_hub_id(name) -> bool:
    """Whether `name` is `owner/name`, and no file or folder here."""
    return isinstance(name, str) and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


class PushesCheckpoint:
    """
    For what `transformers.utils.PushToHubMixin` pushes. Where the repository has no card yet, transformers makes a form
    to be filled in, and this replaces the form. A datastore that a former push left there would be that of this model:
    it is deleted where this model has none.
    """

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        model = getattr(self, "model", self)
        path = Path(working_dir, "README.md")
        if path.is_file() and "# Model Card for Model ID" in path.read_text(encoding="utf-8"):
            tags = ModelCard.load(path).data.tags or ()  # those that push_to_hub was given
            card = model_card(repo_id, getattr(model, "config", None), tags=tags)
            path.write_text(card, encoding="utf-8")
        if getattr(model, "datastore", self) is None and not kwargs.get("create_pr"):
            place = {"repo_id": repo_id, "revision": kwargs.get("revision"), "token": kwargs.get("token")}
            if file_exists(filename="datastore/datastore.json", **place):
                delete_folder("datastore", commit_message="Delete the datastore of the former model", **place)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
