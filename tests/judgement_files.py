"""Judgement files for tests, written at once."""

from contextlib import closing
from pathlib import Path

from llm_server.offline.judgement_file import JudgementFile, Judgements


def write_judgements(path: str | Path, judgements: Judgements) -> None:
    """Write a new file with all of `judgements`."""
    with closing(JudgementFile(Path(path), judgements.provenance, judgements.threshold)) as file:
        texts = {judged.caption.id: judged.caption.text for judged in judgements.captions}
        for judged_pair in judgements.pairs:
            for caption in (judged_pair.pair.first, judged_pair.pair.second):
                texts.setdefault(caption.id, caption.text)
        file.add_captions({text: judgements.counts.get(number, 0) for number, text in texts.items()})
        file.write_captions(judgements.captions)
        file.add_pairs([judged.pair for judged in judgements.pairs])
        file.write_pairs(judgements.pairs)
