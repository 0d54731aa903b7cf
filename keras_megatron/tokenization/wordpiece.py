"""WordPiece in Rust (the `tokenizers` library): the path outside of TensorFlow graphs."""

from collections.abc import Iterator

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from keras_megatron.tokenization.vocabulary import CONTINUATION_PREFIX, SPECIAL_TOKENS, Vocabulary

MAX_CHARACTERS_PER_WORD = 100  # a longer word is [UNK]
# Texts a call to the library. Its encodings are large: this bounds how many are alive at a time.
_TEXTS_PER_CALL = 8192


class RustWordPiece:
    """BERT's tokenizer as `tokenizers.BertWordPieceTokenizer` builds it, without [CLS] and [SEP].

    Args:
        vocabulary: the pieces.
        lowercase: lower-case the text and strip its accents.
        special_tokens: whether `[MASK]` and the like in a text are the tokens of this name.
    """

    def __init__(self, vocabulary: Vocabulary, lowercase: bool, special_tokens: bool = True):
        model = WordPiece(
            vocabulary.ids,
            unk_token="[UNK]",
            max_input_chars_per_word=MAX_CHARACTERS_PER_WORD,
            continuing_subword_prefix=CONTINUATION_PREFIX,
        )
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        if special_tokens:
            self._tokenizer.add_special_tokens(list(SPECIAL_TOKENS))

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        encode = self._tokenizer.encode_batch_fast  # keeps no offsets
        return [encoding.ids for encoding in _in_chunks(encode, texts)]

    def tokenize_with_offsets(
        self, texts: list[str]
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Return the ids of each text, and the (start, end) characters that each id comes from."""
        encodings = list(_in_chunks(self._tokenizer.encode_batch, texts))
        return [encoding.ids for encoding in encodings], [
            encoding.offsets for encoding in encodings
        ]

    def with_special_tokens(self, sequence_length: int) -> tokenizers.Tokenizer:
        """Return a copy that adds [CLS] and [SEP], truncates and pads to the longest row."""
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        separator, classifier = ((token, copy.token_to_id(token)) for token in ("[SEP]", "[CLS]"))
        copy.post_processor = BertProcessing(separator, classifier)
        copy.enable_truncation(sequence_length)
        copy.enable_padding(pad_id=copy.token_to_id("[PAD]"), pad_token="[PAD]")
        return copy


def _in_chunks(encode_batch, texts: list[str]) -> Iterator[tokenizers.Encoding]:
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        yield from encode_batch(texts[start : start + _TEXTS_PER_CALL], add_special_tokens=False)
