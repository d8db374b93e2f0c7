"""Who is told when a study ends: a web address, or the desktop one sits at. A plain function; what goes wrong with it
is said, and stops nothing."""

import http.client
import json
import platform
import shutil
import subprocess
import urllib.request

from fcurr.io import progress
from fcurr.study.sections import Notify

WAIT = 10.0  # seconds


def tell(notify: Notify, study: str, what: str) -> None:
    """Sends that a study has ended, and how."""
    if notify.webhook:
        _post(notify.webhook, study, what)
    if notify.desktop:
        _show(study, what)


def _post(address: str, study: str, what: str) -> None:
    """{"text": ...} as JSON: what Slack, Mattermost and Discord's /slack addresses take, with the parts beside it."""
    text = f"fcurr: study {study} on {platform.node()}: {what}"
    body = json.dumps({"text": text, "study": study, "host": platform.node(), "outcome": what}).encode()
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=WAIT).close()
    except (OSError, ValueError, http.client.HTTPException) as wrong:
        progress.say(f"the notice could not be sent to {address}: {wrong}")


def _show(study: str, what: str) -> None:
    title, words = f"fcurr: study {study}", what
    if program := shutil.which("notify-send"):
        command = [program, title, words]
    elif program := shutil.which("osascript"):
        command = [program, "-e", f"display notification {json.dumps(words)} with title {json.dumps(title)}"]
    else:
        progress.say("there is no desktop to notify: neither notify-send nor osascript is installed")
        return
    try:
        subprocess.run(command, timeout=WAIT, check=False, capture_output=True)
    except (OSError, subprocess.TimeoutExpired) as wrong:
        progress.say(f"the desktop could not be notified: {wrong}")
