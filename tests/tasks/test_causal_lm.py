"""The decoder next to transformers', which is one only with is_decoder=True."""

import keras
import keras_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface import SMALL, largest_difference, random_inputs, random_model, torch_inputs
from models import as_numpy, randomize, small_backbone

from keras_megatron import (
    MegatronBertCausalLM,
    MegatronBertCausalLMPreprocessor,
    MegatronBertMaskedLM,
    MegatronBertTokenizer,
)

TOLERANCE = 2e-5
LENGTH = 24
# Genesis 1:1-3 in the King James Version (1769), public domain.
TEXTS = [
    "in the beginning god created the heaven and the earth .",
    "and the earth was without form , and void ;",
    "and darkness was upon the face of the deep .",
    "and god said , let there be light : and there was light .",
]
PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *sorted({word for text in TEXTS for word in text.split()}),
]


@pytest.fixture(scope="module")
def reference():
    return random_model("MegatronBertForCausalLM", is_decoder=True)


@pytest.fixture(scope="module")
def causal_lm(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    reference.save_pretrained(folder)
    return MegatronBertCausalLM.from_preset(str(folder), preprocessor=None)


def token_inputs(**arguments):
    inputs = random_inputs(SMALL["vocab_size"], **arguments)
    del inputs["mask_positions"]
    return inputs


def small_causal_lm(**arguments) -> MegatronBertCausalLM:
    preprocessor = MegatronBertCausalLMPreprocessor(
        MegatronBertTokenizer(PIECES), sequence_length=16
    )
    return MegatronBertCausalLM(small_backbone(vocabulary_size=48, **arguments), preprocessor)


def prompts(count=3, length=5):
    """Random ids that are all of a prompt, and room for what follows them."""
    rng = np.random.default_rng(5)
    token_ids = np.zeros((count, LENGTH), "int32")
    token_ids[:, :length] = rng.integers(5, SMALL["vocab_size"], (count, length))
    padding_mask = np.zeros((count, LENGTH), "int32")
    padding_mask[:, :length] = 1
    return {"token_ids": token_ids, "padding_mask": padding_mask}


@pytest.mark.parity
def test_logits_equal_hugging_face(reference, causal_lm, parity):
    inputs = token_inputs()
    with torch.no_grad():
        expected = reference(**torch_inputs(inputs)).logits.numpy()
    real = inputs["padding_mask"] == 1  # what a padding position attends to is not defined
    parity("causal-LM logits", as_numpy(causal_lm(inputs))[real], expected[real], TOLERANCE)
    reference.config.is_decoder = False  # negative control: transformers' mask is not causal then
    with torch.no_grad():
        bidirectional = reference(**torch_inputs(inputs)).logits.numpy()
    reference.config.is_decoder = True
    assert largest_difference(as_numpy(causal_lm(inputs))[real], bidirectional[real]) > 0.01


def test_the_loss_equals_hugging_faces(reference, causal_lm):
    inputs = token_inputs()
    labels = torch.from_numpy(inputs["token_ids"]).long()
    labels[torch.from_numpy(inputs["padding_mask"]) == 0] = -100
    with torch.no_grad():
        expected = reference(**torch_inputs(inputs), labels=labels).loss.item()
    x = {name: array[:, :-1] for name, array in inputs.items()}
    y, weight = inputs["token_ids"][:, 1:], inputs["padding_mask"][:, 1:].astype("float32")
    assert float(causal_lm.test_on_batch(x, y, weight)[0]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_search_gives_transformers_tokens(use_cache, reference, causal_lm):
    inputs = prompts()
    expected = reference.generate(
        torch.from_numpy(inputs["token_ids"][:, :5]).long(),
        generation_config=transformers.GenerationConfig(
            max_length=LENGTH, do_sample=False, use_cache=use_cache, pad_token_id=0
        ),
    ).numpy()
    assert len(np.unique(expected[:, 5:])) > 3  # not one token over and over
    causal_lm.compile(sampler="greedy")
    generated = causal_lm.generate(dict(inputs), stop_token_ids=None)
    np.testing.assert_array_equal(generated["token_ids"], expected)


def test_the_cache_changes_nothing(causal_lm):
    """Greedy search by the whole sequence each time, with prompts of different lengths."""
    inputs = prompts()
    inputs["padding_mask"][1, 3:5] = inputs["token_ids"][1, 3:5] = 0
    causal_lm.compile(sampler="greedy")
    cached = causal_lm.generate(dict(inputs), stop_token_ids=None)["token_ids"]
    token_ids = inputs["token_ids"].copy()
    ones = np.ones_like(token_ids)
    for position in range(3, LENGTH):
        whole = {"token_ids": token_ids, "segment_ids": 0 * ones, "padding_mask": ones}
        best = causal_lm.logits(whole)[:, position - 1].argmax(axis=-1)
        free = inputs["padding_mask"][:, position] == 0
        token_ids[free, position] = best[free]
    np.testing.assert_array_equal(cached, token_ids)


def test_beam_search_finds_what_transformers_beam_search_finds(reference, causal_lm):
    """Each prompt as if it were alone, which is how transformers gets them here."""
    inputs = {name: array[:, :12] for name, array in prompts(count=16, length=9).items()}
    config = transformers.GenerationConfig(
        max_length=12, do_sample=False, num_beams=3, length_penalty=0.0, pad_token_id=0
    )
    expected = []
    for row, length in enumerate([2, 9, 6, 4, 8, 3, 7, 5] * 2):
        inputs["padding_mask"][row] = np.arange(12) < length
        prompt = torch.from_numpy(inputs["token_ids"][row : row + 1, :length]).long()
        expected.append(reference.generate(prompt, generation_config=config).numpy()[0])
    causal_lm.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=3))
    generated = causal_lm.generate(inputs, stop_token_ids=None)["token_ids"]
    np.testing.assert_array_equal(generated, expected)


@pytest.mark.parametrize("mask", [[0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
def test_prompts_that_do_not_begin_their_rows_are_refused(causal_lm, mask):
    inputs = {"token_ids": np.array([[5, 6, 7, 8]] * 2), "padding_mask": np.array([mask, [1] * 4])}
    with pytest.raises(ValueError, match=r"padding_mask must be 1 for a prompt, .* behind prompts"):
        causal_lm.generate(inputs, stop_token_ids=None)


def test_prompts_and_lengths_that_are_none():
    causal_lm = small_causal_lm()
    for nothing in ([], (), np.array([])):
        assert causal_lm.generate(nothing) == []
    for length in (10.0, "8"):
        with pytest.raises(ValueError, match="max_length must be an integer of at least 1"):
            causal_lm.generate("in the", max_length=length)
    causal_lm.preprocessor.add_start_token = False
    with pytest.raises(ValueError, match="a prompt is empty, and nothing can follow nothing"):
        causal_lm.generate(["in the", ""])


def test_what_follows_a_stop_counts_for_nothing_in_a_beam(reference, causal_lm):
    """Transformers keeps as many beams as before when one ends, which may find another answer."""
    stops = list(range(6, SMALL["vocab_size"], 6))
    lengths = [2, 9, 6, 4, 8, 3, 7, 5] * 2
    inputs = {name: array[:, :16] for name, array in prompts(count=16, length=9).items()}
    inputs["padding_mask"] = (np.arange(16) < np.array(lengths)[:, None]).astype("int32")
    inputs["token_ids"] = np.where(inputs["padding_mask"], inputs["token_ids"], 0)
    config = transformers.GenerationConfig(
        max_length=16,
        do_sample=False,
        num_beams=3,
        length_penalty=0.0,
        pad_token_id=0,
        eos_token_id=stops,
    )
    causal_lm.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=3))
    together = causal_lm.generate(inputs, stop_token_ids=stops)
    same = 0
    for row, length in enumerate(lengths):
        one = {name: array[row : row + 1] for name, array in inputs.items()}
        found, alone = (
            made["token_ids"][place][np.asarray(made["padding_mask"][place], bool)].tolist()
            for made, place in ((together, row), (causal_lm.generate(one, stop_token_ids=stops), 0))
        )
        assert found == alone
        prompt = torch.from_numpy(one["token_ids"][:, :length]).long()
        expected = reference.generate(prompt, generation_config=config)[0].tolist()
        same += found == expected[: len(found)]
    print("SAME", same)
    assert same >= 14


def decoder_of_an_encoder(lengths=(5, 7, 10)):
    """A transformers decoder with cross-attention, ours with its weights, and encoder states."""
    reference = random_model("MegatronBertForCausalLM", is_decoder=True, add_cross_attention=True)
    rng = np.random.default_rng(3)
    states = [rng.standard_normal((2, n, SMALL["hidden_size"])).astype("float32") for n in lengths]
    return reference, dict(zip(lengths, states, strict=True))


def reference_decoder(model, inputs, states, mask):
    """Transformers' decoder, its cross-attention computed position by position.

    `MegatronBertSelfAttention` reshapes keys and values to the length of the queries, so it works
    for equal lengths only. Its projections, asked one key at a time, have no such trouble.
    """

    def attend(module, hidden, *_, encoder_hidden_states=None, attention_mask=None, **__):
        heads = (module.num_attention_heads, module.attention_head_size)
        source = hidden if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projection(x).unflatten(-1, heads).transpose(1, 2)
            for projection, x in (
                (module.query, hidden),
                (module.key, source),
                (module.value, source),
            )
        )
        if encoder_hidden_states is not None:
            attention_mask = mask[:, None, None, :].bool()
        elif attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask >= 0
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask
        )
        return context.transpose(1, 2).flatten(2), None

    for layer in model.bert.encoder.layer:
        for block in (layer.attention, layer.crossattention):
            block.self.forward = attend.__get__(block.self)
    with torch.no_grad():
        return model(
            **torch_inputs(inputs), encoder_hidden_states=torch.from_numpy(states)
        ).logits.numpy()


@pytest.mark.parity
def test_cross_attention_to_an_encoder_of_any_length(tmp_path, parity):
    reference, states = decoder_of_an_encoder()
    reference.save_pretrained(tmp_path)
    decoder = MegatronBertCausalLM.from_preset(str(tmp_path), preprocessor=None)
    inputs = token_inputs(batch=2, sequence=5)
    inputs["padding_mask"][:] = 1
    with torch.no_grad():  # equal lengths: transformers as it is
        plain = reference(
            **torch_inputs(inputs), encoder_hidden_states=torch.from_numpy(states[5])
        ).logits.numpy()
    for length, encoded in states.items():
        mask = np.ones((2, length), "int32")
        mask[1, length - 2 :] = 0
        logits = {}
        for name, m in (("no", np.ones_like(mask)), ("some", mask)):
            given = {**inputs, "encoder_hidden_states": encoded, "encoder_padding_mask": m}
            expected = reference_decoder(reference, inputs, encoded, torch.from_numpy(m))
            logits[name] = as_numpy(decoder(given))
            what = f"cross-attention, encoder of {length}, {name} padding"
            parity(what, logits[name], expected, TOLERANCE)
        assert largest_difference(logits["no"][1], logits["some"][1]) > 0.001
        if length == 5:
            assert largest_difference(logits["no"], plain) <= TOLERANCE


def test_a_decoder_of_an_encoder_generates_as_without_a_cache(tmp_path):
    reference, states = decoder_of_an_encoder((7,))
    reference.save_pretrained(tmp_path)
    decoder = MegatronBertCausalLM.from_preset(str(tmp_path), preprocessor=None)
    decoder.compile(sampler="greedy")
    encoder = {
        "encoder_hidden_states": states[7],
        "encoder_padding_mask": np.array([[1] * 7, [1] * 4 + [0] * 3]),
    }
    inputs = {name: array[:2, :12] for name, array in prompts().items()}
    generated = decoder.generate({**inputs, **encoder}, stop_token_ids=None)["token_ids"]
    token_ids, ones = inputs["token_ids"].copy(), np.ones((2, 12), "int32")
    for position in range(5, 12):
        whole = {"token_ids": token_ids, "segment_ids": 0 * ones, "padding_mask": ones, **encoder}
        token_ids[:, position] = decoder.logits(whole)[:, position - 1].argmax(axis=-1)
    np.testing.assert_array_equal(generated, token_ids)


def test_fit_on_texts_learns_them_and_generate_repeats_them():
    causal_lm = small_causal_lm(dropout=0.0, attention_dropout=0.0)
    causal_lm.compile(optimizer=keras.optimizers.Adam(5e-3), sampler="greedy")
    losses = causal_lm.fit(TEXTS, batch_size=4, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.1 * losses[0]
    assert causal_lm.evaluate(TEXTS, verbose=0)[0] < 0.1 * losses[0]
    assert causal_lm.predict(TEXTS[:2], verbose=0).shape == (2, 16, 48)
    prompt = "and god said , let there"
    assert causal_lm.generate(prompt, max_length=16) == TEXTS[3]
    assert causal_lm.generate([prompt], max_length=16, strip_prompt=True) == [
        TEXTS[3].removeprefix(prompt).strip()
    ]


@pytest.mark.parametrize("sampler", ["greedy", "top_k", "top_p", "random", "beam"])
def test_all_of_kerashubs_samplers_run(sampler):
    causal_lm = small_causal_lm()
    causal_lm.compile(sampler=sampler)
    texts = causal_lm.generate(["in the", "and god said"], max_length=10)
    assert texts[0].startswith("in the")
    assert texts[1].startswith("and god said")


def test_what_is_padding_of_the_table_is_never_generated():
    causal_lm = small_causal_lm()
    causal_lm.mlm_head.bias.assign(np.arange(48, dtype="float32"))  # prefers the last rows
    causal_lm.compile(sampler="greedy")
    inputs = causal_lm.preprocessor.generate_preprocess(["in the"])
    generated = causal_lm.generate_step(inputs)["token_ids"]
    assert as_numpy(generated).max() == len(PIECES) - 1


def test_preset_and_keras_file_round_trip(tmp_path):
    causal_lm = small_causal_lm()
    randomize(causal_lm)
    causal_lm.compile(sampler="greedy")
    causal_lm.save_to_preset(tmp_path / "preset")
    causal_lm.save(tmp_path / "model.keras")
    expected = causal_lm.generate("in the", max_length=12)
    for loaded in (
        keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset")),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert type(loaded) is MegatronBertCausalLM
        loaded.compile(sampler="greedy")
        assert loaded.generate("in the", max_length=12) == expected
    masked_lm = MegatronBertMaskedLM.from_preset(str(tmp_path / "preset"))
    np.testing.assert_array_equal(
        as_numpy(masked_lm.mlm_head.dense.kernel), as_numpy(causal_lm.mlm_head.dense.kernel)
    )


def test_exported_to_transformers(tmp_path):
    causal_lm = MegatronBertCausalLM(small_backbone(cross_attention=True))
    randomize(causal_lm)
    causal_lm.export_to_transformers(tmp_path / "exported")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert type(loaded) is transformers.MegatronBertForCausalLM
    inputs = token_inputs(batch=2, sequence=6)
    inputs["padding_mask"][:] = 1
    states = np.random.default_rng(0).standard_normal((2, 6, SMALL["hidden_size"]))
    with torch.no_grad():
        expected = loaded(
            **torch_inputs(inputs), encoder_hidden_states=torch.from_numpy(states).float()
        ).logits.numpy()
    given = {**inputs, "encoder_hidden_states": states, "encoder_padding_mask": np.ones((2, 6))}
    assert largest_difference(as_numpy(causal_lm(given)), expected) <= TOLERANCE


@pytest.mark.parametrize(("arguments", "message"), [
    ({"inputs": "in the", "max_length": 41}, "up to 41 tokens with 40 positions"),
    ({"inputs": "in the", "max_length": 3}, "prompt of 3 tokens leaves no room in 3"),
    ({"inputs": "in the " * 20}, "prompt of 41 tokens leaves no room in 16"),
])  # fmt: skip
def test_generate_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_causal_lm().generate(**arguments)


def test_labels_are_refused():
    with pytest.raises(ValueError, match="give no y"):
        small_causal_lm().fit(TEXTS, TEXTS, verbose=0)


def test_a_decoder_is_loaded_as_nothing_else(reference, tmp_path):
    reference.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a decoder .* MegatronBertCausalLM"):
        MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
