"""What an evaluation finds, and what its metrics and the kinds of leaks are called."""

METRIC_TITLES = {
    "cider_d": "CIDEr-D",
    **{f"bleu_{n}": f"BLEU@{n}" for n in range(1, 5)},
    "meteor_1.5": "METEOR 1.5",
    "rouge_l": "ROUGE-L",
    "clap_at": "CLAP A-T",  # in brackets after it stands the checkpoint
    "clap_tt": "CLAP T-T",
    "copy": "Copy %",
    "distinct": "Distinct %",
    "novel": "Novel %",
    "words": "Words",
}
LEAK_TITLES = {
    "exact_caption": "exact captions",
    "near_caption": "near-duplicate captions",
    "identical_audio": "identical audio",
    "near_audio": "near-identical audio",
}


def leak_rule(options: dict) -> str:
    """What counts as a leak, by the `options` of `leakage.json`."""
    rule = "Captions are compared as normalised by the rule paper, whatever the model's. "
    rule += f"Near-duplicate captions: Jaccard of word {options['ngram']}-grams above {options['threshold']:g}; "
    rule += "identical audio: files of the same bytes; near-identical audio: "
    if options["model"]:
        rule += f"cosine of the embeddings by {options['model']} above {options['audio_threshold']:g}. "
    else:
        rule += "not looked for, which python -m corpora.leakage --model does. "
    return rule + "What is the same is not counted as near."
