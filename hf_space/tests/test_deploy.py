"""deploy.sh and publish.py as far as they go without a host: refusals, what is staged, and the wait for a build."""

import os
import subprocess
import sys
import tempfile
import types
import unittest
from pathlib import Path

import space  # Finds the modules of the page.

import publish  # isort: skip

DEPLOY = space.HERE.parent / "deploy.sh"


def deploy(*arguments, **environment):
    # Without network, so that no photograph is fetched, and without what the caller may be logged in with.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), clean["PATH"]])
    with tempfile.TemporaryDirectory() as home:
        clean = {**clean, "HOME": home, "PATH": path, "PIP_NO_INDEX": "1", **environment}
        return subprocess.run([DEPLOY, *map(str, arguments)], capture_output=True, text=True, env=clean)


class Refusals(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = Path(folder.name, "model.engine")
        self.model.write_bytes(b"a model")

    def test_what_is_missing_is_named_and_nothing_is_done(self):
        for arguments, words in [
            (["a/b"], "--model is missing"),
            (["a/b", "--model", "absent"], "there is no model absent"),
            (["nobody", "--model", self.model], "USER/NAME is wanted"),
            (["a/b", "--model", self.model, "--sdk", "static"], "docker or gradio"),
            (["a/b", "--model", self.model, "--run", "absent"], "no folder"),
            (["a/b", "--model"], "has no value"),
            (["a/b", "--modell", "x"], "no option --modell"),
            (["a/b", "--model", self.model], "no Hugging Face token: set HF_TOKEN"),
        ]:
            done = deploy(*arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


class Staged(unittest.TestCase):
    def stage(self, *arguments):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        scratch = Path(scratch.name)
        (scratch / "model.engine").write_bytes(b"a model")
        (scratch / "logs.md").write_text("# Training logs\n")
        (scratch / "classify").write_bytes(b"\x7fELF GLIBC_2.17 GLIBC_2.9 and so on")
        (scratch / "new").write_bytes(b"\x7fELF GLIBC_2.39")
        names = ("--model", scratch / "model.engine", "--run", scratch, "--stage", scratch / "staged")
        arguments = [scratch / part.name if isinstance(part, Path) else part for part in arguments]
        return deploy(*names, *arguments), scratch / "staged"

    def test_for_gradio_everything_lies_at_the_root(self):
        done, folder = self.stage("--sdk", "gradio", "--classify", Path("classify"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(
            {"app.py", "model.engine", "logs.md", "classify", "requirements.txt"} <= {p.name for p in folder.iterdir()}
        )
        self.assertTrue(os.access(folder / "classify", os.X_OK))
        text = (folder / "README.md").read_text()
        self.assertTrue(text.startswith("---\n") and "\nsdk: gradio\n" in text and "# What is in this picture?" in text)
        self.assertNotIn("sdk: docker", text)
        self.assertFalse((folder / "tests").exists())

    def test_the_versions_agree(self):
        wanted = (space.HERE.parent / "requirements.txt").read_text().strip().removeprefix("gradio==")
        self.assertIn(f"sdk_version: {wanted}\n", (space.HERE.parent / "front_matter.gradio.yaml").read_text())

    def test_for_docker_the_sources_lie_beside_the_page(self):
        done, folder = self.stage("--sdk", "docker")
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in (
            "Dockerfile",
            "README.md",
            "app/app.py",
            "app/model.engine",
            "engine/Cargo.lock",
            "engine/src/bin/classify.rs",
        ):
            self.assertTrue((folder / name).is_file(), name)
        self.assertIn("\nsdk: docker\napp_port: 7860\n", (folder / "README.md").read_text())

    def test_a_binary_for_a_newer_system_is_refused(self):
        done, _ = self.stage("--sdk", "gradio", "--classify", Path("new"))
        self.assertEqual(done.returncode, 2)
        self.assertIn("needs glibc 2.39, Spaces have 2.36", done.stderr)

    def test_a_folder_that_holds_something_is_left_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "mine").write_text("")
            done = deploy("--model", Path(folder) / "mine", "--stage", folder)
            self.assertIn("is not empty", done.stderr)


class Host:
    """Answers with one stage after another, as a host does; the last one stays."""

    def __init__(self, *stages):
        self.stages = list(stages)

    def get_space_runtime(self, _):
        stage, sha = self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
        return types.SimpleNamespace(stage=stage, raw={"sha": sha})

    def fetch_space_logs(self, _, build):
        yield "cargo says no\n" if build else "python says no\n"


class Waiting(unittest.TestCase):
    def wait(self, *stages):
        now = [0.0]
        publish.wait(Host(*stages), "a/b", "new", lambda: now[0], lambda seconds: now.__setitem__(0, now[0] + seconds))
        return now[0]

    def test_it_waits_for_its_own_commit(self):
        seconds = self.wait(
            ("RUNNING", "old"), ("RUNNING_BUILDING", "old"), ("APP_STARTING", "new"), ("RUNNING", "new")
        )
        self.assertEqual(seconds, 3 * publish.LOOK_SECONDS)

    def test_what_ends_is_told_with_its_log(self):
        with self.assertRaisesRegex(publish.Failed, "BUILD_ERROR:\ncargo says no"):
            self.wait(("BUILDING", "new"), ("BUILD_ERROR", "new"))
        with self.assertRaisesRegex(publish.Failed, "RUNTIME_ERROR:\npython says no"):
            self.wait(("RUNTIME_ERROR", "new"))

    def test_an_old_failure_is_not_ours(self):
        self.wait(("RUNTIME_ERROR", "old"), ("RUNNING", "new"))

    def test_it_does_not_wait_for_ever(self):
        with self.assertRaisesRegex(publish.Failed, "did not run after 30 minutes; its last stage was BUILDING"):
            self.wait(("BUILDING", "new"))


if __name__ == "__main__":
    unittest.main()
