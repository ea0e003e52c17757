"""What the page and its API ask the classifier, and how they are told the answer."""

import time

import gradio

import result
from classifier import Refused, Unavailable


class Answers:
    """Of one classifier, for any number of visitors."""

    def __init__(self, classifier):
        self.classifier = classifier

    def found(self, path, precision):
        request = {"file": str(path), "top": 5, "explain": True}
        if precision:
            request["precision"] = precision
        try:
            return self.classifier.ask(**request)
        except Refused as error:
            # The file's place on the server is no visitor's business.
            raise Refused(str(error).removeprefix(f"{path}: ")) from None

    def for_page(self, path, precision):
        """HTML: an answer, or the sentence that says why there is none."""
        if path is None:
            return result.WAITING
        begin = time.monotonic()
        try:
            found = self.found(path, precision)
        except (Refused, Unavailable) as error:
            return result.failure(sentence(error))
        return result.answer(found, begin)

    def for_programs(self, path, precision):
        """The classifier's own answer, or an error with its sentence."""
        if path is None:
            raise gradio.Error("No picture was given.", print_exception=False)
        try:
            found = self.found(path, precision)
        except (Refused, Unavailable) as error:
            raise gradio.Error(sentence(error), print_exception=False) from None
        answer = {key: found[key] for key in ("predictions", "explanation", "milliseconds")}
        # Gradio's clients take whatever has a key "path" for a file.
        return {**answer, "cpu_path": found["path"]}


def sentence(error):
    """For a person: begins with a capital and ends with a stop."""
    text = str(error)
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
