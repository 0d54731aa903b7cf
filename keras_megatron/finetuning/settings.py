"""What a fine-tuning run depends on."""

import dataclasses

from keras_megatron.finetuning.recipe import RECIPES, Recipe
from keras_megatron.tasks.training import check_keeps_updates


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """What a fine-tuning run depends on, besides the backend.

    Attributes:
        task: name of the task, such as `"text-classification"`.
        preset: name or folder of the model to start from.
        train: data file to learn from, `PATH` or `PATH:PART`; see `read_records`.
        dev: data file to choose the best epoch by.
        test: data file to measure the best epoch on, or None.
        recipe: name in `RECIPES` of the numbers that follow, where they are None.
        epochs: times through the data.
        batch_size: samples a step.
        learning_rate: the peak, see `adamw`.
        warmup: share of the steps in which the rate rises.
        weight_decay: see `adamw`.
        sequence_length: tokens a sample; by default as many as the longest one has, up to the
            model's positions.
        seed: of the new head, of dropout and of the order of the data.
        lora_rank: rank of adapters that are trained instead of the backbone, or None.
        dtype: `"float32"`, `"mixed_bfloat16"` or another dtype policy.
        columns: names of the text columns, where the files have others.
        label: name of the column with the labels.
    """

    task: str
    preset: str
    train: str
    dev: str
    test: str | None = None
    recipe: str = "default"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    sequence_length: int | None = None
    seed: int = 0
    lora_rank: int | None = None
    dtype: str = "float32"
    columns: tuple[str, ...] | None = None
    label: str = "label"

    def resolved(self) -> "FinetuneSettings":
        """Return settings whose numbers are those of the recipe where they were None.

        Raises:
            ValueError: there is no such recipe, or a number is out of range.
        """
        if self.recipe not in RECIPES:
            raise ValueError(
                f"there is no recipe {self.recipe!r}: give one of {', '.join(RECIPES)}"
            )
        recipe = dataclasses.asdict(RECIPES[self.recipe])
        chosen = {name: getattr(self, name) for name in recipe}
        numbers = {name: recipe[name] if n is None else n for name, n in chosen.items()}
        Recipe(**numbers)  # refuses what is out of range
        for name, least in (("seed", 0), ("lora_rank", 1), ("sequence_length", 3)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        check_keeps_updates(self.dtype)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, not {self.seed}")
        return dataclasses.replace(self, **numbers)

    def as_recipe(self) -> Recipe:
        """Return the numbers of resolved settings as a recipe."""
        names = [field.name for field in dataclasses.fields(Recipe)]
        return Recipe(**{name: getattr(self, name) for name in names})
