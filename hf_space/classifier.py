"""`classify --stdio` as one long-lived process: a request goes in as a line, its answer comes out as one.

The process may die or hang: it is started again, and the picture that was in its hands is asked about once more.
"""

import collections
import contextlib
import json
import queue
import subprocess
import sys
import threading
import time

# Lines of the process's messages that an error may quote.
KEPT_MESSAGES = 20


class Refused(Exception):
    """The picture or the request is at fault; the sentence says what is wrong with it."""


class Unavailable(Exception):
    """The classifier gave no answer; the sentence says what a visitor can do."""


class Died(Exception):
    """The process ended before it answered."""


class Process:
    """One life of the program. Not for several threads at once."""

    def __init__(self, command):
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.answers = queue.Queue()
        self.messages = collections.deque(maxlen=KEPT_MESSAGES)
        readers = (self._read_answers, self._read_messages)
        self.readers = [threading.Thread(target=reader, daemon=True) for reader in readers]
        for reader in self.readers:
            reader.start()

    def _read_answers(self):
        with self.popen.stdout as lines:
            for line in lines:
                self.answers.put(line)
        self.answers.put(None)

    def _read_messages(self):
        with self.popen.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                self.messages.append(text)
                print(text, file=sys.stderr, flush=True)

    def ask(self, request, seconds):
        """The answer to `request`; raises Died, or queue.Empty after `seconds`."""
        try:
            self.popen.stdin.write(json.dumps(request).encode() + b"\n")
            self.popen.stdin.flush()
        except OSError as error:
            raise Died from error
        deadline = time.monotonic() + seconds
        while True:
            line = self.answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if line is None:
                raise Died
            answer = json.loads(line)
            if answer.get("id") == request["id"]:
                return answer

    def end(self):
        # One that is ending by itself is given the time to say why.
        try:
            self.popen.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for reader in self.readers:
            reader.join(timeout=1.0)
        with contextlib.suppress(OSError):
            self.popen.stdin.close()


class Classifier:
    """Answers one request after another, from any thread. The process starts with the object, not with the first
    request."""

    def __init__(self, command, limit_seconds=20.0):
        self.command = [str(part) for part in command]
        self.limit = limit_seconds
        self.lock = threading.Lock()
        self.process = None
        self.starts = 0
        self.count = 0
        self._start()

    def _start(self):
        self.starts += 1
        try:
            self.process = Process(self.command)
        except OSError as error:
            self.process = None
            raise Unavailable(f"The classifier cannot be started: {self.command[0]}: {error.strerror}.") from error

    def _discard(self):
        """Ends the process, unless it has ended; what it said last, where it ended by itself with an error."""
        process, self.process = self.process, None
        process.end()
        ended_by_itself = process.popen.returncode > 0
        return process.messages[-1] if ended_by_itself and process.messages else None

    def ask(self, **request):
        """The answer as a dictionary. Raises Refused or Unavailable with a sentence for a person."""
        # Who waits behind a request that takes all its time is answered all the same.
        if not self.lock.acquire(timeout=2 * self.limit):
            raise Unavailable("The classifier is busy with other pictures. Please try again in a moment.")
        try:
            answer = self._ask({"id": self.count, **request})
        finally:
            self.count += 1
            self.lock.release()
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def _ask(self, request):
        said = None
        for _ in range(2):
            if self.process is None:
                self._start()
            try:
                return self.process.ask(request, self.limit)
            except queue.Empty:
                self._discard()
                raise Unavailable(
                    f"This picture took longer than {self.limit:g} seconds, so the work on it was stopped. "
                    "Please try a smaller one."
                ) from None
            except Died:
                said = self._discard()
        if said:
            raise Unavailable(f"The classifier does not run: {said}")
        raise Unavailable("The classifier ended twice over this picture. Please try another one.")

    def describe(self):
        """What the model file says of itself, and the machine: `{"model": ..., "machine": ...}`."""
        return self.ask(describe=True)

    def pid(self):
        return self.process.popen.pid if self.process else None

    def close(self):
        with self.lock:
            if self.process is not None:
                self._discard()
