"""The roofline: the seconds below which no exact system can run an optimizer step on this machine.

    roofline = necessary multiply-adds / best matrix-product rate  +  necessary optimizer bytes / best memory bandwidth

Necessary is what any exact method has to do, whatever it is called, counted here from the token ids alone:

- **blocks**: one pass of every transformer block for each distinct prefix of the step's records, the last token of
  a record excepted (it predicts nothing). In the last block queries, attention output and MLP count for rows with a
  target only.
- **head**: a row of logits for each distinct prefix that predicts a target.
- **attention**: each such prefix with itself and its ancestors.
- Forward once, backward twice: 6 floating-point operations a parameter and row, 12 a pair and attention channel.
- **with an adapter** a frozen matrix takes 4 operations a parameter and row (its own gradient is not needed, and below query, key
  and value of the first layer none at all), an adapter's matrix 6; the optimizer's bytes are the adapter's.
- **optimizer**: AdamW reads and writes parameter and both moments (24 bytes a parameter), and because the norm of
  the whole gradient is needed before the first update, the gradient is written and read (4 bytes in bfloat16); a
  bfloat16 copy of the weights is written for the next step (2 bytes).

Padding, logits that are not needed, repeated prefixes, recomputed activations, norms, softmax, embedding look-ups and
every byte of activations count nothing. Both rates are the best seen in the same run (`rates`), so 100 % is out of
reach on purpose.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from train_peers.worker import Batch

OPTIMIZER_BYTES_PER_PARAMETER = 12 + 12 + 4 + 2


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-shaped model."""

    num_layers: int
    d_model: int
    d_attention: int
    d_keys: int
    d_mlp: int
    num_tokens: int
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """The sizes in a model folder's `config.json`."""
        config = json.loads((folder / "config.json").read_text())
        d_head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return cls(
            num_layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            d_attention=config["num_attention_heads"] * d_head,
            d_keys=config["num_key_value_heads"] * d_head,
            d_mlp=config["intermediate_size"],
            num_tokens=config["vocab_size"],
            tied=config["tie_word_embeddings"],
        )

    @property
    def key_value_parameters(self) -> int:
        """Of one layer: what every row has to pass through, even in the last."""
        return 2 * self.d_model * self.d_keys

    @property
    def row_parameters(self) -> int:
        """Of one layer: queries, attention output and MLP."""
        return 2 * self.d_model * self.d_attention + 3 * self.d_model * self.d_mlp

    @property
    def head_parameters(self) -> int:
        return self.num_tokens * self.d_model

    def adapter_parameters(self, rank: int) -> int:
        """Trained numbers of an adapter of this rank beside every linear layer but the head."""
        return self.num_layers * (self._key_value_adapter(rank) + self._row_adapter(rank))

    def optimizer_bytes(self, rank: int) -> int:
        """What an update moves, of all weights or, with a rank, of the adapter."""
        return (self.adapter_parameters(rank) if rank else self.num_parameters) * OPTIMIZER_BYTES_PER_PARAMETER

    def _key_value_adapter(self, rank: int) -> int:
        return rank * 2 * (self.d_model + self.d_keys)

    def _row_adapter(self, rank: int) -> int:
        return rank * (2 * (self.d_model + self.d_attention) + 3 * (self.d_model + self.d_mlp))

    def _layer_operations(self, rank: int) -> tuple[int, int]:
        """Operations of one row in one layer: in what every row has to pass, and in the rest."""
        if not rank:
            return 6 * self.key_value_parameters, 6 * self.row_parameters
        return (
            4 * self.key_value_parameters + 6 * self._key_value_adapter(rank),
            4 * self.row_parameters + 6 * self._row_adapter(rank),
        )

    def operations(self, rows: int, target_rows: int, rank: int) -> int:
        """Operations of the matrices in a step of so many rows, forward and backward; a multiply-add is two."""
        every, rest = self._layer_operations(rank)
        layers = self.num_layers * rows * every + ((self.num_layers - 1) * rows + target_rows) * rest
        if rank:  # nothing below query, key and value of the first layer is trained
            querying = rows if self.num_layers > 1 else target_rows
            keys_values, queries = self.key_value_parameters, self.d_model * self.d_attention
            layers -= 2 * (rows * (keys_values + 2 * rank * self.d_model) + querying * (queries + rank * self.d_model))
        return layers + (4 if rank else 6) * target_rows * self.head_parameters

    @property
    def num_parameters(self) -> int:
        """Trained numbers in all, norms included; a tied head counts once."""
        blocks = self.num_layers * (self.key_value_parameters + self.row_parameters + 2 * self.d_model)
        return blocks + self.d_model + self.head_parameters * (1 if self.tied else 2)


@dataclass(frozen=True)
class Necessary:
    """What one optimizer step cannot do without."""

    rows: int
    target_rows: int
    pairs: int
    target_pairs: int

    def flops(self, shape: Shape, rank: int = 0) -> int:
        """Floating-point operations, forward and backward; with a `rank`, of an adapter on a frozen model."""
        pairs = (shape.num_layers - 1) * self.pairs + self.target_pairs
        return shape.operations(self.rows, self.target_rows, rank) + 12 * shape.d_attention * pairs


def count(batch: Batch) -> Necessary:
    """Count distinct prefixes, those with a target, and who sees whom."""
    nodes: dict[tuple[int, int], int] = {}  # (node of the prefix before, token) -> node; the root is -1
    depth: list[int] = []
    with_target: set[int] = set()
    for side in (side for record in batch for side in record.sides):
        node = -1
        for position, token in enumerate(side.ids[:-1]):
            child = nodes.setdefault((node, token), len(nodes))
            if child == len(depth):
                depth.append(position + 1)
            node = child
            if position + 1 >= side.num_prompt:
                with_target.add(node)
    return Necessary(
        rows=len(nodes),
        target_rows=len(with_target),
        pairs=sum(depth),
        target_pairs=sum(depth[node] for node in with_target),
    )


def roofline_seconds(
    batch: Batch, shape: Shape, flops_per_second: float, bytes_per_second: float, rank: int = 0
) -> float:
    """The roofline of one optimizer step on `batch`."""
    return count(batch).flops(shape, rank) / flops_per_second + shape.optimizer_bytes(rank) / bytes_per_second
