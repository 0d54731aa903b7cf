import os
from collections.abc import Iterable

import keras
import keras_hub
import numpy as np
import tokenizers

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.tokenization.graph_wordpiece import GraphWordPiece
from keras_megatron.tokenization.packing import check_sequence_length, pack
from keras_megatron.tokenization.strings import Texts, as_id_rows, as_partners, as_strings
from keras_megatron.tokenization.vocabulary import (
    CONTINUATION_PREFIX,
    Vocabulary,
    resolve_casing,
)
from keras_megatron.tokenization.vocabulary_asset import VOCABULARY_FILE, VocabularyAsset
from keras_megatron.tokenization.wordpiece import RustWordPiece


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertTokenizer(VocabularyAsset, keras_hub.tokenizers.Tokenizer):
    """BERT's WordPiece tokenizer, exact and fast.

    Ids and offsets are those of `tokenizers.BertWordPieceTokenizer`, whose Rust code does the work.
    Special tokens written in a text, such as `[MASK]`, are one piece. Inside `tf.data`,
    `tf.function` and a SavedModel the same calls take string tensors and run as TensorFlow and TF
    Text ops, which give the same ids.

    Args:
        vocabulary: str, path or list of str. A file with one piece a line, or the pieces, in the
            order of their ids. None if `load_assets` is to follow.
        lowercase: bool. Lower-case the text and strip its accents. By default what the vocabulary
            is made for: True unless it has pieces with upper-case letters.
        dtype: str. Integer dtype of the ids.
        **kwargs: of `keras_hub.tokenizers.Tokenizer`.

    Texts are a str, a list or tuple of str, a NumPy array of str, bytes or objects, or a TensorFlow
    string tensor. Bytes are UTF-8; what is not becomes U+FFFD, which BERT drops.

    Raises:
        ValueError: the vocabulary cannot be read, is empty, repeats a piece or lacks one of [PAD],
            [UNK], [CLS], [SEP], [MASK]; or `dtype` is not an integer's.

    Warns:
        UserWarning: `lowercase` contradicts the vocabulary.

    Example:
    ```python
    from keras_megatron import MegatronBertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s", "open"]
    tokenizer = MegatronBertTokenizer(pieces)
    assert tokenizer.tokenize(["The cafés [MASK]"]) == [[5, 6, 7, 4]]
    inputs = tokenizer.encode(["The cafés"], ["open"], sequence_length=8)
    assert inputs["token_ids"].tolist() == [[2, 5, 6, 7, 3, 8, 3, 0]]
    ```
    """

    backbone_cls = MegatronBertBackbone

    def __init__(
        self,
        vocabulary: str | os.PathLike | Iterable[str] | None = None,
        lowercase: bool | None = None,
        dtype: str = "int32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        if not keras.backend.is_int_dtype(self.compute_dtype):
            raise ValueError(f"dtype must be an integer dtype for ids, not {self.compute_dtype}")
        self.lowercase = lowercase
        self.file_assets = [VOCABULARY_FILE]
        self._eager = self._in_graph = None
        for name, token in {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
            "unk_token": "[UNK]",
            "start_token": "[CLS]",  # KerasHub's names for the first two
            "end_token": "[SEP]",
        }.items():
            self._add_special_token(token, name)
        if vocabulary is not None:
            self.set_vocabulary(vocabulary)

    def _use(self, vocabulary: Vocabulary) -> None:
        self.lowercase = resolve_casing(self.lowercase, vocabulary)
        super()._use(vocabulary)
        self._eager = RustWordPiece(vocabulary, self.lowercase)
        self._in_graph = None  # made when a graph asks for it
        self._update_special_token_ids()

    # === Texts and ids ===

    def tokenize(self, inputs: Texts) -> np.ndarray | list[list[int]]:
        """Turn texts into ids, without [CLS] and [SEP].

        Args:
            inputs: texts, as the class says.

        Returns:
            An array (pieces,) for one text, a list of lists for a batch. In a graph an int tensor
            (pieces,) or a ragged one (batch, pieces).

        Raises:
            ValueError: something in `inputs` is not a string.
        """
        self._checked_vocabulary()
        if self._use_tf_workflow():
            return self._graph().tokenize(inputs)
        texts, batched = as_strings(inputs, "inputs")
        ids = self._eager.tokenize(texts)
        return ids if batched else np.array(ids[0], self.compute_dtype)

    def call(self, inputs: Texts, training: bool | None = None):
        """Do what `tokenize` does. `training` makes no difference."""
        return self.tokenize(inputs)

    def tokenize_with_offsets(self, inputs: Texts) -> tuple[np.ndarray | list, list]:
        """Turn texts into ids and say which characters each id comes from.

        Args:
            inputs: texts, as the class says.

        Returns:
            The ids as `tokenize` returns them, and for each id a pair (start, end): it comes from
            `text[start:end]`, where `text` is the original string, before any normalization. The
            pairs are a list for one text, a list of lists for a batch; in a graph an int64 tensor
            (pieces, 2), or a ragged one (batch, pieces, 2). Offsets into bytes are those into their
            decoded text.

        Raises:
            ValueError: something in `inputs` is not a string.
        """
        self._checked_vocabulary()
        if self._use_tf_workflow():
            return self._graph().tokenize_with_offsets(inputs)
        texts, batched = as_strings(inputs, "inputs")
        ids, offsets = self._eager.tokenize_with_offsets(texts)
        if batched:
            return ids, offsets
        return np.array(ids[0], self.compute_dtype), offsets[0]

    def detokenize(self, inputs) -> str | list[str]:
        """Turn ids into text: pieces that continue a word are joined to it, words by a space.

        Args:
            inputs: ids of one text or of a batch: lists, arrays or tensors.

        Returns:
            A str or a list of str; in a graph a string tensor.

        Raises:
            ValueError: the vocabulary has no such id.
        """
        vocabulary = self._checked_vocabulary()
        if self._use_tf_workflow():
            return self._graph().detokenize(inputs)
        rows, batched = as_id_rows(inputs)
        texts = [
            " ".join(map(vocabulary.piece_of, row)).replace(f" {CONTINUATION_PREFIX}", "")
            for row in rows
        ]
        return texts if batched else texts[0]

    def encode(
        self,
        first: Texts,
        second: Texts | None = None,
        sequence_length: int | None = None,
        pad_to_longest: bool = False,
    ) -> dict[str, np.ndarray]:
        """Turn texts, or pairs of texts, into arrays that a model takes.

        A row is `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`, then padding. What is too
        long is cut at the end; of a pair, ids are taken from the longer text until both are as
        long (`longest_first` of the `tokenizers` library).

        Args:
            first: texts, as the class says.
            second: None, or as many texts as `first`.
            sequence_length: int. Columns of the arrays. None cuts nothing and takes as many as the
                longest row needs.
            pad_to_longest: bool. Whether `sequence_length` cuts only, and there are as many columns
                as the longest row needs.

        Returns:
            A dict of arrays (batch, columns), or (columns,) for one text, of the tokenizer's dtype:
            `token_ids`; `segment_ids`, 1 for `second` and its [SEP]; `padding_mask`, 1 for a token
            and 0 for padding. In a graph they are tensors.

        Raises:
            ValueError: something is not a string, `first` and `second` are not as many, or
                `sequence_length` has no room for the special tokens.
        """
        self._checked_vocabulary()
        check_sequence_length(sequence_length, pair=second is not None)
        if self._use_tf_workflow():
            return self._graph().encode(first, second, sequence_length, pad_to_longest)
        texts, batched = as_strings(first, "first")
        partner_ids = None
        if second is not None:
            partners = as_partners(second, len(texts), batched)
            partner_ids = self._eager.tokenize(partners)
        ids = self._eager.tokenize(texts)
        arrays = self.pack(ids, partner_ids, sequence_length, pad_to_longest)
        return arrays if batched else {name: array[0] for name, array in arrays.items()}

    def pack(
        self,
        first: list[list[int]],
        second: list[list[int]] | None = None,
        sequence_length: int | None = None,
        pad_to_longest: bool = False,
    ) -> dict[str, np.ndarray]:
        """Do what `encode` does, with the ids of texts that are tokenized already.

        Args:
            first: ids of each text; in a graph ragged (batch, pieces).
            second: None, or ids of each text's partner.
            sequence_length: as of `encode`.
            pad_to_longest: as of `encode`.

        Returns:
            A dict of arrays as of `encode`, each (len(first), columns).
        """
        vocabulary = self._checked_vocabulary()
        if self._use_tf_workflow():
            return self._graph().pack(first, second, sequence_length, pad_to_longest)
        return pack(first, second, vocabulary, sequence_length, self.compute_dtype, pad_to_longest)

    def to_tokenizers(self, sequence_length: int = 512) -> tokenizers.Tokenizer:
        """Return a `tokenizers.Tokenizer` whose rows are those of `encode`, for use without Keras.

        Args:
            sequence_length: int. Tokens after which it cuts; it pads to the longest row.
        """
        self._checked_vocabulary()
        return self._eager.with_special_tokens(sequence_length)

    def _graph(self) -> GraphWordPiece:
        if self._in_graph is None:
            self._in_graph = GraphWordPiece(
                self._checked_vocabulary(), self.lowercase, self.compute_dtype
            )
        return self._in_graph

    def get_config(self) -> dict:
        """Return the arguments of the constructor; the vocabulary is an asset of its own."""
        return {**super().get_config(), "vocabulary": None, "lowercase": self.lowercase}
