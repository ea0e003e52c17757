"""Creates a Space, uploads a staged folder, waits until it runs, asks it once, and writes its address.

python3 publish.py USER/SPACE FOLDER --sdk docker|gradio [--private]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

LINK = Path(__file__).resolve().parent / "hf_space_link.txt"
WAIT_SECONDS, LOOK_SECONDS = 1800, 10
# Stages from which a Space does not come back by itself (huggingface_hub's SpaceStage).
ENDS = ("NO_APP_FILE", "CONFIG_ERROR", "BUILD_ERROR", "RUNTIME_ERROR", "DELETING", "STOPPED", "PAUSED")
LOG_LINES = 30


class Failed(Exception):
    """A sentence."""


def upload(api, space, folder, sdk, private):
    """The commit that the Space is built from."""
    api.create_repo(space, repo_type="space", space_sdk=sdk, private=private, exist_ok=True)
    # What an earlier upload left and this one lacks goes away.
    commit = api.upload_folder(
        repo_id=space, repo_type="space", folder_path=folder, delete_patterns="*", commit_message="Deploy"
    )
    return commit.oid


def wait(api, space, commit, clock=time.monotonic, sleep=time.sleep):
    """Until the Space runs `commit`; says each stage once."""
    begin, said = clock(), None
    while clock() - begin < WAIT_SECONDS:
        runtime = api.get_space_runtime(space)
        stage, sha = str(getattr(runtime.stage, "value", runtime.stage)), runtime.raw.get("sha")
        if stage != said:
            print(f"{space}: {stage}", file=sys.stderr)
            said = stage
        is_ours = sha in (None, commit)
        if stage == "RUNNING" and is_ours:
            return
        if stage in ENDS and is_ours:
            lines = list(api.fetch_space_logs(space, build=stage == "BUILD_ERROR"))[-LOG_LINES:]
            raise Failed(f"the Space ended in {stage}:\n" + "\n".join(line.rstrip() for line in lines))
        sleep(LOOK_SECONDS)
    raise Failed(f"the Space did not run after {WAIT_SECONDS // 60} minutes; its last stage was {said}")


def ask(client, handle_file):
    """One picture through the API; the likeliest class and its share."""
    import examples

    with tempfile.TemporaryDirectory() as folder:
        picture = examples.drawn(Path(folder))[0]
        answer = client.predict(handle_file(picture), api_name="/classify")
    first = answer["predictions"][0]
    return (
        f"{first['label']} ({first['probability']:.1%}), {answer['milliseconds']['run']:.1f} ms, {answer['cpu_path']}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space")
    parser.add_argument("folder")
    parser.add_argument("--sdk", choices=("docker", "gradio"), required=True)
    parser.add_argument("--private", action="store_true")
    args = parser.parse_args()
    from gradio_client import Client, handle_file
    from huggingface_hub import HfApi, get_token

    api = HfApi()
    try:
        wait(api, args.space, upload(api, args.space, args.folder, args.sdk, args.private))
        print(f"it answers: {ask(Client(args.space, token=get_token(), verbose=False), handle_file)}", file=sys.stderr)
    except Failed as error:
        sys.exit(f"publish.py: {error}")
    LINK.write_text(f"https://huggingface.co/spaces/{args.space}\n")
    print(LINK.read_text().strip())


if __name__ == "__main__":
    main()
