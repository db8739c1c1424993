"""What runs in the shell of a device behind adb: scripts for Android's mksh and toybox, and for any POSIX shell.

Each is given to `sh -c` with its arguments behind it, which it never puts into a command: no shell reads a name as anything else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from edgekit.devices.native import Platform

OPENED, LOCKED, THERE = "EDGEKIT-OPENED", "EDGEKIT-LOCKED", "EDGEKIT-THERE"
FILE, SHOWN = "EDGEKIT-FILE", "EDGEKIT-SHOWN"
NONE, ENDED, CANNOT, DENIED = "EDGEKIT-NONE", "EDGEKIT-ENDED", "EDGEKIT-CANNOT", "EDGEKIT-DENIED"

# What the device is: its architecture, the 64-bit ABIs of its Android (none where there is no Android), its version and model.
FACTS = """
uname -m
if command -v getprop >/dev/null 2>&1; then
  echo "android=$(getprop ro.build.version.release)"
  echo "abis=$(getprop ro.product.cpu.abilist64)"
  echo "model=$(getprop ro.product.model)"
fi
"""

# Shows the files that say what a Linux machine is and in which state, each behind its path, and the counters of its processors
# before and after a second in which this script sleeps. What may not be read is left out.
SURVEY = """
show() {
  for file; do
    if [ -f "$file" ] && [ -r "$file" ]; then echo "EDGEKIT-FILE $file"; cat "$file"; echo; fi
  done 2>/dev/null
}
count() {
  echo "EDGEKIT-FILE /$1/programs"; cat /proc/[0-9]*/stat; echo
  echo "EDGEKIT-FILE /$1/uptime"; cat /proc/uptime; echo
  echo "EDGEKIT-FILE /$1/stat"; cat /proc/stat; echo
} 2>/dev/null
cpu=/sys/devices/system/cpu heat=/sys/class/thermal power=/sys/class/power_supply
show /proc/cpuinfo /proc/meminfo /proc/device-tree/model /proc/sys/kernel/arch /proc/sys/kernel/osrelease
show /proc/self/status /proc/self/cgroup /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_*_us
show $cpu/cpu[0-9]*/cpu_capacity $cpu/cpu[0-9]*/cpufreq/*max_freq $cpu/cpu[0-9]*/cpufreq/scaling_governor
show $cpu/cpu[0-9]*/cpufreq/scaling_driver $cpu/cpu[0-9]*/cpufreq/energy_performance_preference
show $heat/thermal_zone*/type $heat/thermal_zone*/temp $heat/thermal_zone*/trip_point_*
show $heat/cooling_device*/type $heat/cooling_device*/cur_state
show $power/*/type $power/*/online $power/*/status $power/*/capacity $power/*/scope
count before
sleep 1
count after
echo EDGEKIT-SHOWN
"""

# Takes the device, or says who has it, and holds it until its input ends: then adb, the cable or edgekit is gone. A lock of
# another boot, or whose process is gone, is nobody's. $1: edgekit's folder, $2: the owner.
HOLD = """
lock=$1/lock boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
mkdir -p "$1/folders" || exit 1
if ! mkdir "$lock" 2>/dev/null; then
  [ -d "$lock" ] || { mkdir "$lock"; exit 1; }
  [ -e "$lock/boot" ] || sleep 1
  pid=$(cat "$lock/pid" 2>/dev/null)
  if [ -n "$pid" ] && [ -d "/proc/$pid" ] && [ "$boot" = "$(cat "$lock/boot" 2>/dev/null)" ]; then
    echo "EDGEKIT-LOCKED $(cat "$lock/owner")"
    exit 0
  fi
  rm -rf "$lock"
  mkdir "$lock" || exit 1
fi
trap 'rm -rf "$1/work" "$lock"' EXIT
trap 'exit 1' HUP TERM PIPE
echo "$2 since $(date '+%Y-%m-%d %H:%M:%S')" >"$lock/owner" && echo "$$" >"$lock/pid" && echo "$boot" >"$lock/boot" || exit 1
rm -rf "$1/work"
mkdir "$1/work" || exit 1
find "$1/folders" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +
echo EDGEKIT-OPENED
while read -r line; do :; done
"""

# Runs a command until its own end, the deadline, or the end of this script's input, and ends all that it started. The watchers
# must hold no stream: adb waits until everybody has closed them. A process is killed before its group, which it may not have made
# yet. $1: where, $2: seconds, then the command.
RUN = """
cd "$1" || exit 1
limit=$2
shift 2
if ! command -v -- "$1" >/dev/null 2>&1; then
  if [ -e "$1" ]; then echo "EDGEKIT-DENIED" >&2; else echo "EDGEKIT-CANNOT no such program" >&2; fi
  exit 1
fi
exec 3<&0
setsid "$@" </dev/null 3<&- &
child=$!
( while read -r line; do :; done; kill -KILL "$child" "-$child" ) <&3 3<&- >/dev/null 2>&1 &
watcher=$!
setsid sh -c 'sleep "$1"; kill -KILL "-$2"' sh "$limit" "$child" </dev/null >/dev/null 2>&1 3<&- &
timer=$!
wait "$child"
code=$?
kill -KILL "$watcher" "$timer" "-$timer" "-$child" 2>/dev/null
echo >&2
echo "EDGEKIT-ENDED $code" >&2
"""

# Whether a folder is there, which is then in use. $1: its path.
LOOK = '[ -d "$1" ] && touch "$1" && echo EDGEKIT-THERE'

# Makes folders. $@: their paths.
MAKE = 'mkdir -p "$@"'

# The sha256 of each file, or EDGEKIT-NONE, a line each. $1: their folder, then the names.
DIGESTS = """
cd "$1" 2>/dev/null || { shift; for name in "$@"; do echo EDGEKIT-NONE; done; exit 0; }
shift
for name in "$@"; do if [ -f "$name" ]; then sha256sum <"$name"; else echo EDGEKIT-NONE; fi; done
"""

# Gives a folder that has arrived whole its name. $1: what it is called, $2: what it shall be called.
ARRIVED = 'sync; mv "$1" "$2"'

# How many files a folder has. $1: where, $2: the folder, which may be relative to that.
COUNT = 'cd "$1" && cd "$2" 2>/dev/null || { echo EDGEKIT-NONE; exit 0; }; pwd; find . -type f -exec echo x \\; | wc -l'

# Deletes. $@: the paths.
DELETE = 'rm -rf "$@"'

# Deletes edgekit's folder; the kilobytes that it took. $1: its path.
CLEAN = 'du -sk "$1"; rm -rf "$1"'

# Battery, heat and power saving as Android's services tell them.
CONDITION = """
command -v dumpsys >/dev/null 2>&1 || exit 0
dumpsys battery
dumpsys thermalservice
echo "low_power: $(settings get global low_power)"
"""


def line(script: str, arguments: Sequence[str] = (), env: Mapping[str, str] | None = None) -> str:
    """A command line for the device's shell that runs a script with these arguments, each of them quoted, and variables."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    return " ".join(
        [*variables, "exec" if not variables else "", shlex.join(["sh", "-c", script, "sh", *arguments])]
    ).strip()


def read_facts(text: str) -> dict[str, str]:
    """What FACTS says: arch, and of an Android: android (its version), abis, model."""
    lines = text.split("\n")
    return {"arch": lines[0].strip()} | {
        key: value.strip() for key, equals, value in (one.partition("=") for one in lines[1:]) if equals
    }


def platform_of(facts: Mapping[str, str]) -> Platform:
    """What programs must be built for, from `read_facts`."""
    return Platform(arch=facts["arch"], system="android" if "android" in facts else "linux")


def system_of(facts: Mapping[str, str]) -> str | None:
    """How an Android calls itself, from `read_facts`; None of another system."""
    return f"Android {facts['android']}, {facts['model']}" if "android" in facts else None


def read_condition(text: str) -> dict[str, float]:
    """What CONDITION says of a phone: temperature_c (the highest of skin and battery), thermal_status (0: none, 1: light, to 6:
    shutdown), battery_percent, plugged (0 or 1) and low_power (0 or 1), as far as it tells them.

    thermal_status is android.os.PowerManager's THERMAL_STATUS; mType 2 and 3 of the thermal HAL are battery and skin.
    """
    battery = dict(re.findall(r"^\s*([\w ]+): (\S+)\s*$", text, re.MULTILINE))
    found: dict[str, float] = {}
    level, scale = battery.get("level", ""), battery.get("scale", "100")
    if level.isdigit() and scale.isdigit() and int(scale):
        found["battery_percent"] = 100.0 * int(level) / int(scale)
    powered = [value for key, value in battery.items() if key.endswith(" powered")]
    if powered:
        found["plugged"] = float("true" in powered)
    # What the service shows first are its last events', which may be hours old.
    current = text.partition("Current temperatures from HAL:")[2] or text
    heat = [float(value) for value in re.findall(r"mValue=(-?[\d.]+), mType=[23],", current)]
    # In tenths of a degree.
    if re.fullmatch(r"-?\d+", battery.get("temperature", "")):
        heat.append(int(battery["temperature"]) / 10)
    if heat:
        found["temperature_c"] = max(heat)
    if status := re.search(r"^\s*Thermal Status: (\d+)", text, re.MULTILINE):
        found["thermal_status"] = float(status[1])
    if battery.get("low_power") in {"0", "1"}:
        found["low_power"] = float(battery["low_power"])
    return found
