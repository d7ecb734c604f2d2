"""A loaded model with its encoder: the one way to load a model that is to answer, for every command and judge that needs one.

Stands between a name and generation: the template that the model was trained with, the device, the compute dtype and the encoder
are chosen here, so that every command asks a model in the way in which it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from tuneful.config import Config
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import load_encoder
from tuneful.files import cache_root
from tuneful.infer.decode import keep_laid_out, laid_out
from tuneful.infer.generate import answer, stream
from tuneful.model.checks import ignore
from tuneful.model.load import Pretrained, load_model
from tuneful.model.precision import cast_parameters, choose_device, choose_dtype
from tuneful.model.saved_template import with_saved_template
from tuneful.types import Answer, Conversation, Turn


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode with the encoder of its template; answers are generated under `config`.

    Its weights are laid out for the kernels once, as long as nothing changes them.
    """

    model: PreTrainedModel
    encoder: Encoder
    config: Config

    @classmethod
    def load(cls, config: Config, notify: Callable[[str], None] = ignore) -> LoadedModel:
        """The model that `config` names, on its device and in its compute dtype; `notify` is told what takes a while.

        The template is the one that the model's folder names, unless `config` asks for another. Raises InputError.
        """
        config = with_saved_template(config)
        return cls.of(load_to_answer(config, notify), config, notify)

    @classmethod
    def of(cls, pretrained: Pretrained, config: Config, notify: Callable[[str], None] = ignore) -> LoadedModel:
        """The same for a model that was loaded already; its weights are cast and moved in place.

        `notify` is told where it answers in a slower way than others, and why.
        """
        device = choose_device(config.model.device)
        cast_parameters(pretrained.model, choose_dtype(config.model.dtype, device, cache_root()))
        encoder = load_encoder(pretrained.tokenizer, config)
        model = pretrained.model.to(device)
        keep_laid_out(model)
        if (choice := laid_out(model)[0]).reason:
            notify(f"answers: {choice}")
        return cls(model, encoder, config)

    def answer(self, conversations: Sequence[Conversation], *, seed: int | None = None) -> list[Answer]:
        """The answers to the last turns of `conversations`, in order; `seed` is that of the configuration unless given."""
        seed = self.config.train.seed if seed is None else seed
        return answer(self.model, self.encoder, conversations, self.config.generate, seed=seed)

    def stream(self, conversation: Conversation) -> Iterator[str]:
        """The answer to the last turn of `conversation`, piece by piece."""
        return stream(self.model, self.encoder, conversation, self.config.generate, seed=self.config.train.seed)


def load_to_answer(config: Config, notify: Callable[[str], None] = ignore) -> Pretrained:
    """The model that `config` names, loaded in its compute dtype: of bfloat16 no float32 copy is made. ModelError."""
    dtype = choose_dtype(config.model.dtype, choose_device(config.model.device), cache_root())
    return load_model(config.model.name_or_path, notify, dtype)


def question(system: str, history: Sequence[Turn], instruction: str, input_text: str = "") -> Conversation:
    """What a model is asked, after the turns of `history`, as the conversation whose last response is wanted."""
    # The response stands for the one that is asked for: a prompt is rendered without it.
    return Conversation(system, (*history, Turn(instruction, input_text, "?")), "prompt")
