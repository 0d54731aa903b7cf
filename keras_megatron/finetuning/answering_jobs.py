"""The jobs of tasks that answer, but are not fine-tuned on labels."""

from keras_megatron.finetuning.examples import Examples, text_examples
from keras_megatron.finetuning.jobs import Job
from keras_megatron.tasks.causal_lm import MegatronBertCausalLM
from keras_megatron.tasks.masked_lm import MegatronBertMaskedLM
from keras_megatron.tasks.text_embedder import MegatronBertTextEmbedder


class FillMask(Job):
    """The tokens that belong where a text says [MASK]."""

    name, task_class = "masked-lm", MegatronBertMaskedLM

    def examples(self, records, columns, labelled) -> Examples:
        """Read one text column."""
        return text_examples(records, None, columns, sizes=(1,))

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `masks`: for each the best tokens."""
        filled = model.fill_mask(examples.columns[0], batch_size=batch_size)
        return [{"masks": masks} for masks in filled]


class TextEmbedding(Job):
    """A vector for a text."""

    name, task_class = "text-embedding", MegatronBertTextEmbedder

    def examples(self, records, columns, labelled) -> Examples:
        """Read one text column."""
        return text_examples(records, None, columns, sizes=(1,))

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `embedding`."""
        vectors = model.encode_text(examples.columns[0], batch_size)
        return [{"embedding": vector} for vector in vectors.tolist()]


class TextGeneration(Job):
    """The text that follows a prompt."""

    name, task_class = "causal-lm", MegatronBertCausalLM

    def examples(self, records, columns, labelled) -> Examples:
        """Read one text column."""
        return text_examples(records, None, columns, sizes=(1,))

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `text`, the prompt and what follows."""
        prompts = examples.columns[0]
        batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
        return [{"text": text} for batch in batches for text in model.generate(batch)]
