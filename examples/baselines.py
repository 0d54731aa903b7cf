"""Simple methods that a fine-tuned model is compared with, measured on the same test data."""

import collections
import statistics

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from keras_megatron.finetuning.examples import Examples
from keras_megatron.finetuning.metrics import tag_scores
from keras_megatron.finetuning.squad_metrics import squad_scores


def tf_idf(training: Examples, test: Examples) -> float:
    """Return the accuracy of logistic regression on TF-IDF of words and pairs of words."""
    return _regression(TfidfVectorizer(ngram_range=(1, 2), min_df=2), training, test)


def bag_of_words(training: Examples, test: Examples) -> float:
    """Return the accuracy of logistic regression on the counts of words."""
    return _regression(CountVectorizer(), training, test)


def _regression(vectorizer, training: Examples, test: Examples) -> float:
    model = make_pipeline(vectorizer, LogisticRegression(max_iter=1000))
    model.fit(_joined(training), training.labels)
    return float(model.score(_joined(test), test.labels))


def _joined(examples: Examples) -> list[str]:
    return [" ".join(texts) for texts in zip(*examples.columns, strict=True)]


def chance(training: Examples, test: Examples) -> float:
    """Return the accuracy of choosing any of the choices."""
    return statistics.mean(1 / len(choices) for choices in test.columns[1])


def any_word(training: Examples, test: Examples) -> float:
    """Return the mean F1 of answering with any word of the context."""
    scores = []
    for context, answers in zip(test.columns[1], test.labels, strict=True):
        words = context.split()
        right = [[answer["text"] for answer in answers]] * len(words)
        scores.append(squad_scores(words, right)["f1"])
    return statistics.mean(scores)


def most_frequent_tag(training: Examples, test: Examples) -> dict[str, float]:
    """Return the scores of the tag that each word has most often; unknown words get the commonest.

    Returns:
        As `tag_scores`.
    """
    counts = collections.defaultdict(collections.Counter)
    for words, tags in zip(training.columns[0], training.labels, strict=True):
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    unknown = sum(counts.values(), collections.Counter()).most_common(1)[0][0]
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    tags = [[best.get(word, unknown) for word in words] for words in test.columns[0]]
    spans = any(tag.startswith("B-") for tag in best.values())
    return tag_scores(test.labels, tags, spans)


def tagged_words(training: Examples, test: Examples) -> float:
    """Return the accuracy of `most_frequent_tag`."""
    return most_frequent_tag(training, test)["accuracy"]


def tagged_spans(training: Examples, test: Examples) -> float:
    """Return the span F1 of `most_frequent_tag`."""
    return most_frequent_tag(training, test)["f1"]
