"""Everything that Tuneful raises on purpose.

    TunefulError                    exit code 1: the work failed
    ├── InputError  (ValueError)    exit code 2: the request or its input is wrong
    │   ├── ConfigError             a key, a value or a command-line argument
    │   ├── DataError               a file or a row of it
    │   ├── ModelError              a model, its tokenizer or its download
    │   └── TemplateError           a prompt template, or a template that does not suit the tokenizer
    ├── CheckpointError             a checkpoint cannot be written
    │   └── CorruptCheckpointError  exit code 2: there are checkpoints, and none of them is whole
    ├── DivergedError               a loss, a gradient or a log-probability is no number any more
    ├── OutOfMemoryError            a micro-batch does not fit the memory
    ├── PeerError                   another rank of the job failed
    ├── JudgeError                  a judge that cannot be reached, or that scored nothing
    ├── ExportError                 what was written is not what was trained
    └── GateError                   exit code 3: the work is done, and its figures are not what was asked for

A message says what is wrong, where (`file:line`, key, tensor) and how to fix it, in one or two sentences. The command
line prints it without a traceback. Broken promises of our own code are `assert`s, not errors of this tree.
"""

_MAX_MESSAGE = 1_500


class TunefulError(Exception):
    """Base of the tree: `str(error)` is the whole message for the user, `exit_code` what the process ends with."""

    exit_code = 1


class InputError(TunefulError, ValueError):
    """The request or its input is wrong; nothing was done."""

    exit_code = 2


class ConfigError(InputError):
    """A key is unknown, or a value is out of its range."""


class DataError(InputError):
    """A file cannot be read, or a row of it cannot be used; the message opens with `file:line`."""


class ModelError(InputError):
    """A model or tokenizer cannot be found, fetched, verified or loaded.

    What a model calls its parts, and what libraries say of them, may be part of the message: it is one line, of characters that
    can be printed, and not without an end.
    """

    def __init__(self, message: str) -> None:
        text = " ".join(message[: 2 * _MAX_MESSAGE].split())
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)[:_MAX_MESSAGE])


class TemplateError(InputError):
    """A prompt template does not exist, or its control tokens are unknown to the tokenizer."""


class JudgeError(TunefulError):
    """A judge cannot be reached, does not have its model, or scored not a single answer."""


class ExportError(TunefulError):
    """A saved model, loaded again, does not answer as the one in memory did."""


class CheckpointError(TunefulError):
    """A checkpoint cannot be written."""


class CorruptCheckpointError(CheckpointError):
    """There are checkpoints, and none of them is whole; nothing was done."""

    exit_code = 2


class DivergedError(TunefulError):
    """A loss, a gradient or a log-probability is not finite: a training has diverged, or a model is damaged."""


class OutOfMemoryError(TunefulError):
    """A micro-batch does not fit the memory: `num_records` records, `num_tokens` tokens, the longest of `longest`."""

    def __init__(self, num_records: int, num_tokens: int, longest: int, source: str) -> None:
        self.num_records, self.num_tokens = num_records, num_tokens
        records = "1 record" if num_records == 1 else f"{num_records} records"
        self.shape = f"{records}, {num_tokens:,} tokens, the longest of {longest:,}"
        super().__init__(
            f"out of memory at a micro-batch of {self.shape} ({source}). Lower data.max_length, take a smaller model, or "
            "give model.dtype=bfloat16"
        )

    def among_ranks(self, max_tokens: int) -> TunefulError:
        """The same of a rank that holds a shard of the model: others wait for it within a layer, so nothing is tried again."""
        return TunefulError(
            f"out of memory at a micro-batch of {self.shape}, and what is sharded cannot be computed again in smaller ones: give "
            f"train.micro_batch_tokens={max(1, max_tokens)}, or more ranks; the run goes on from its checkpoint"
        )


class PeerError(TunefulError):
    """Another rank of the job failed, or is gone, and so this one ends."""


class GateError(TunefulError):
    """The comparison does not meet the conditions of the gate; everything was written before this was raised."""

    exit_code = 3


class NotFiniteError(TunefulError, ValueError):
    """A number that is to be written is NaN or infinite, which no JSON can hold."""
