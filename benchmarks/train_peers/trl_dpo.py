"""TRL's `DPOTrainer` on a CPU, at its best settings: bfloat16, no activation checkpointing, fused AdamW, the reference known.

Words of a variant: `padded` (its only layout), `compiled` (torch.compile, by the trainer), `huge-pages` (an environment
variable). `defaults` leaves precision and activation checkpointing as TRL ships them. Pairs arrive tokenized, and with the
reference's log-probabilities, as after `precompute_ref_log_probs`; no reference model is held or run.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from train_peers.stepping import train_by_trl
from train_peers.worker import BETA, Batch, open_job


class KnownReference(DPOTrainer):
    """Takes ids and the reference's log-probabilities as they come."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def rows(batches: list[Batch]) -> list[dict[str, Any]]:
    """The pairs of all batches one after another, under the names of TRL's collator."""
    found = []
    for record in (record for batch in batches for record in batch):
        assert record.rejected is not None
        assert record.reference is not None
        found.append(
            {
                "prompt_ids": record.ids[: record.num_prompt],
                "chosen_ids": record.ids[record.num_prompt :],
                "rejected_ids": record.rejected[record.num_prompt :],
                "ref_chosen_logps": record.reference[0],
                "ref_rejected_logps": record.reference[1],
            }
        )
    return found


def main() -> None:
    job, channel = open_job()
    own = {"beta": BETA, "precompute_ref_log_probs": True}
    train_by_trl(job, channel, KnownReference, DPOConfig, rows(job.batches), **own)


if __name__ == "__main__":
    main()
