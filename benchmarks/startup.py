"""How long `fcurr --help` takes, against python itself and against importing torch: python benchmarks/startup.py"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "fcurr --help": [sys.executable, "-c", "from fcurr_cli.main import main; main(['--help'])"],
    "fcurr ls": [sys.executable, "-c", "from fcurr_cli.main import main; main(['ls'])"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(11):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    torch = statistics.median(times["python -c 'import torch'"])
    print("| command | seconds, median | of importing torch |\n|---|---|---|")
    for name, own in times.items():
        print(f"| `{name}` | {statistics.median(own):.2f} | {statistics.median(own) / torch:.2f} |")


if __name__ == "__main__":
    main()
