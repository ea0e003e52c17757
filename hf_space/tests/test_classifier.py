"""The long-lived process: what becomes of a request when it dies, hangs, or cannot start. Needs no model."""

import sys
import tempfile
import threading
import unittest

import space  # noqa: F401  Finds the modules of the page.

from classifier import Classifier, Refused, Unavailable

PROGRAM = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    what = request.get("file", "")
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "die once":
        mark = sys.argv[1]
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), 9)
    if what == "complain":
        print("fake: out of paper", file=sys.stderr, flush=True)
        sys.exit(3)
    if what == "hang":
        time.sleep(60)
    if what == "stale":
        print(json.dumps({"id": -1, "late": True}), flush=True)
    if what == "bad":
        print(json.dumps({"id": request["id"], "error": "a GIF image; JPEG is read"}), flush=True)
        continue
    print(json.dumps({"id": request["id"], "echo": what}), flush=True)
"""


class TheProcess(unittest.TestCase):
    def classifier(self, limit=5.0):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        classifier = Classifier([sys.executable, "-c", PROGRAM, folder.name + "/mark"], limit)
        self.addCleanup(classifier.close)
        return classifier

    def test_answers_and_refusals(self):
        classifier = self.classifier()
        self.assertEqual(classifier.ask(file="a")["echo"], "a")
        with self.assertRaisesRegex(Refused, "a GIF image"):
            classifier.ask(file="bad")
        self.assertEqual((classifier.ask(file="b")["echo"], classifier.starts), ("b", 1))

    def test_a_process_that_dies_is_started_again_and_asked_again(self):
        classifier = self.classifier()
        self.assertEqual(classifier.ask(file="die once")["echo"], "die once")
        self.assertEqual(classifier.starts, 2)

    def test_a_picture_that_kills_twice_is_given_up(self):
        classifier = self.classifier()
        with self.assertRaisesRegex(Unavailable, "ended twice over this picture"):
            classifier.ask(file="die")
        self.assertEqual(classifier.ask(file="next")["echo"], "next")

    def test_what_hangs_is_ended_after_the_limit(self):
        classifier = self.classifier(limit=1.0)
        with self.assertRaisesRegex(Unavailable, "longer than 1 second"):
            classifier.ask(file="hang")
        self.assertEqual(classifier.ask(file="next")["echo"], "next")

    def test_the_reason_of_a_process_that_ends_itself_is_told(self):
        with self.assertRaisesRegex(Unavailable, "does not run: fake: out of paper"):
            self.classifier().ask(file="complain")

    def test_a_program_that_is_not_there(self):
        with self.assertRaisesRegex(Unavailable, "cannot be started: /absent: No such file"):
            Classifier(["/absent"])

    def test_an_answer_to_another_request_is_passed_over(self):
        self.assertEqual(self.classifier().ask(file="stale")["echo"], "stale")

    def test_many_at_once_get_their_own_answers(self):
        classifier, wrong = self.classifier(), []

        def visitor(number):
            for at in range(50):
                text = f"{number} {at}"
                if classifier.ask(file=text)["echo"] != text:
                    wrong.append(text)

        threads = [threading.Thread(target=visitor, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
