"""What hinders a fair measurement on a device, each in a message of its own with what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgekit.devices.shell_survey import SAVER
from edgekit.doctor import Finding
from edgekit.errors import EdgekitError
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.machine import KERNEL_FEATURES
from edgekit.runtimes.survey import Survey

# The bits of the Raspberry Pi's word (raspberrypi.com/documentation/computers/os.html#get_throttled): of this moment; each has
# its twin 16 bits higher, which says that it has happened since the board started.
THROTTLED = {
    0: ("power supply", "under-voltage", "use the board's own power supply (Pi 5: 5 V, 5 A) and a short, thick cable"),
    1: ("clock", "the firmware caps the clock", "let the board cool, and mend its power supply; then reboot"),
    2: (
        "throttled",
        "the firmware throttles the board",
        "give it a heat sink and a fan, and let it cool before measuring",
    ),
    3: ("soft temperature limit", "the soft limit of temperature is reached", "give it a heat sink or a fan"),
}
# Governors that keep a clock low, or where somebody set it.
_SLOW_GOVERNORS = frozenset({"powersave", "conservative", "userspace"})
# These drivers' "powersave" is their normal state: the preference beside it decides (kernel.org, pm/intel_pstate and amd-pstate).
_OWN_GOVERNORS = frozenset({"intel_pstate", "amd-pstate-epp", "amd_pstate_epp"})
_SAVING = frozenset({"power", "balance_power"})
_POLICIES = "/sys/devices/system/cpu/cpufreq/policy*"
# What can be done of a phone that nobody has rooted.
_OF_PHONES = "a phone's system sets that: plug it in, let it cool, and turn power saving off"
# MiB of swap in use below which it is what some idle program left there; degrees from where the clock falls.
_SWAPPED_MB, _NEAR_C = 32, 5.0
# What is free at the least: a runtime, a small model, and not all of a board.
_FREE_MB, _FREE_SHARE = 256, 0.1
# As `neighbours.disturbances` has them: cores' worth of other programs, shares of time.
_OTHERS, _STOLEN, _GPU_BUSY = 0.25, 0.05, 0.1


def find_hindrances(survey: Survey) -> list[Finding]:
    """What a device is, as far as `doctor` judges it, and what hinders a fair measurement there."""
    return [finding for check in CHECKS for finding in check(survey)]


def check_engines(survey: Survey, renew: str | None) -> Iterator[Finding]:
    """The engines on a remote device: whether they load, and are those that artifacts are made and checked with here.

    renew: the command line that puts this machine's version of them there; None where edgekit itself brings them.
    """
    remedy = f"run: {renew}" if renew else ""
    for engine in survey["engines"]:
        name, version = engine["name"], engine["version"]
        if engine["problem"]:
            yield _problem(name, f"does not load there: {engine['problem']}", remedy)
        elif version is None:
            if name == "onnxruntime":
                yield _problem(name, "not installed there", remedy)
        elif renew and (here := _version_here(name)) and here.split(".")[:2] != version.split(".")[:2]:
            yield _problem(name, f"{version} there, {here} here", remedy)
        else:
            yield Finding(name=name, found=f"{version}, {', '.join(engine['providers']) or 'CPU'}")


def _version_here(name: str) -> str | None:
    try:
        return RUNTIMES[name].version()
    except (EdgekitError, ImportError):
        return None


def _warning(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, found=found, status="warning", remedy=remedy)


def _problem(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, found=found, status="problem", remedy=remedy)


def _check_reality(survey: Survey) -> Iterator[Finding]:
    machine = survey["machine"]
    features = ", ".join(feature for feature in KERNEL_FEATURES if feature in machine["features"])
    yield Finding(name="device", found=f"{survey['board'] or machine['cpu']}, {machine['arch']}, {survey['system']}")
    yield Finding(
        name="device cpu", found=f"{machine['cpu']}, {machine['cores']} cores, {features or 'no features told'}"
    )
    if survey["emulated"]:
        remedy = "accuracy counts, and no speed or memory; measure on the board itself"
        yield _warning("emulated", "; ".join(survey["emulated"]), remedy)


def _is_phone(survey: Survey) -> bool:
    return survey["system"].startswith("Android ")


def _performance(survey: Survey, key: str) -> str:
    """How a file of cpufreq gets the word "performance"."""
    if _is_phone(survey):
        return f"{_OF_PHONES}; on a rooted one run: adb shell su -c 'echo performance | tee {_POLICIES}/{key}'"
    return f"run there: echo performance | sudo tee {_POLICIES}/{key}"


def _check_governor(survey: Survey) -> Iterator[Finding]:
    slow, capped, saving = [], [], []
    for cluster in survey["clusters"]:
        governor, driver = cluster["governor"], cluster["driver"] or ""
        where = f"cores {_ranges(cluster['cpus'])}"
        if governor in _SLOW_GOVERNORS and driver not in _OWN_GOVERNORS:
            slow.append(f"{where}: {governor}")
        elif cluster["preference"] in _SAVING:
            saving.append(f"{where}: {cluster['preference']}")
        if cluster["limit_ghz"]:
            capped.append(f"{where}: {cluster['limit_ghz']:.3g} of {cluster['clock_ghz']:.3g} GHz")
    if slow:
        yield _warning(
            "governor", f"it keeps the clock low ({'; '.join(slow)})", _performance(survey, "scaling_governor")
        )
    if saving:
        found = f"it saves power ({'; '.join(saving)})"
        yield _warning("energy preference", found, _performance(survey, "energy_performance_preference"))
    if capped:
        remedy = f"run there: sudo sh -c 'for p in {_POLICIES}; do cat $p/cpuinfo_max_freq > $p/scaling_max_freq; done'"
        remedy = _OF_PHONES if _is_phone(survey) else remedy
        yield _warning("highest clock", f"it is set below what the cores can do ({'; '.join(capped)})", remedy)
    named = sorted({cluster["governor"] for cluster in survey["clusters"] if cluster["governor"]})
    if named and not slow:
        yield Finding(name="governor", found=", ".join(named))


def _check_profile(survey: Survey) -> Iterator[Finding]:
    if survey["power"]["profile"] in {"low-power", "quiet", "cool"}:
        remedy = "run there: echo performance | sudo tee /sys/firmware/acpi/platform_profile"
        yield _warning("power profile", f"the firmware's is {survey['power']['profile']}", remedy)


def _check_saver(survey: Survey) -> Iterator[Finding]:
    if survey["power"]["profile"] == SAVER:
        remedy = "turn it off in its settings, or run: adb shell settings put global low_power 0"
        yield _warning("power saving", "its battery saver is on, which lowers the clock", remedy)


def _check_battery(survey: Survey) -> Iterator[Finding]:
    power = survey["power"]
    if power["on_battery"]:
        left = "" if power["percent"] is None else f", {power['percent']} % left"
        yield _warning("power", f"it runs on its battery{left}: most systems lower the clock then", "plug it in")


def _check_firmware(survey: Survey) -> Iterator[Finding]:
    word = survey["heat"]["throttled"] or 0
    for bit, (name, found, remedy) in THROTTLED.items():
        if word >> bit & 1:
            yield _warning(name, f"{found} now (get_throttled bit {bit})", remedy)
        elif word >> bit + 16 & 1:
            has = f"{found}: so it was at some time since the board started (get_throttled bit {bit + 16})"
            yield _warning(name, has, f"{remedy}; a reboot clears the bit")


def _check_heat(survey: Survey) -> Iterator[Finding]:
    heat = survey["heat"]
    remedy = "let it cool, or give it a fan"
    if heat["slowed"]:
        found = f"the kernel holds the clock down ({', '.join(sorted(set(heat['slowed'])))})"
        yield _warning("cooling", found, remedy)
    for zone in heat["zones"]:
        limit = zone["slows_at"]
        if limit is not None and zone["celsius"] >= limit - _NEAR_C:
            found = f"{zone['name']} has {zone['celsius']:.0f} °C, and its clock falls from {limit:.0f} °C on"
            yield _warning(f"heat {zone['name']}", found, remedy)


def _check_memory(survey: Survey) -> Iterator[Finding]:
    memory = survey["memory"]
    if memory["swap_used_mb"] >= _SWAPPED_MB:
        found = f"{memory['swap_used_mb']} of {memory['swap_mb']} MB are in use: what is read back from there is slow"
        yield _warning("swap", found, "close programs there, then run: sudo swapoff -a && sudo swapon -a")
    total, free = memory["total_mb"], memory["available_mb"]
    if total and free < max(_FREE_MB, _FREE_SHARE * total):
        found = f"{free} of {total} MB are free"
        yield _warning("free memory", found, "close programs there; a desktop takes half of a small board's")
    elif total:
        yield Finding(name="free memory", found=f"{free} of {total} MB")


def _check_load(survey: Survey) -> Iterator[Finding]:
    busy = survey["busy"]
    others, steal = busy["seen"].get("others"), busy["seen"].get("steal")
    if others is not None and others > _OTHERS:
        named = ", ".join(f"{one['name']} (process {one['pid']}): {one['cores']:.1f}" for one in busy["programs"])
        found = f"other programs keep {others:.1f} cores busy{f'; {named}' if named else ''}"
        yield _warning("other load", found, "end them, or wait until they have")
    if steal is not None and steal > _STOLEN:
        found = f"the hypervisor gives {steal:.0%} of the cores' time to others"
        yield _warning(
            "stolen time", found, "measure on a machine that is not shared, or when its neighbours are quiet"
        )


def _check_allowed(survey: Survey) -> Iterator[Finding]:
    allowed = survey["allowed"]
    quota = allowed["quota"]
    if quota is not None and quota < allowed["online"]:
        found = f"a control group pays for {quota:g} of {allowed['online']} cores, and stops the process in between"
        yield _warning("cpu.max", found, "start the container or service without a limit (docker --cpus, CPUQuota=)")
    if allowed["cores"] < allowed["online"]:
        found = f"only {allowed['cores']} of {allowed['online']} cores may be used"
        yield _warning("affinity", found, "start it without taskset, cpuset or CPUAffinity=")


def _check_build(survey: Survey) -> Iterator[Finding]:
    for engine in survey["engines"]:
        if engine["debug"]:
            remedy = "install a release build: its wheel, or compile with --config Release"
            yield _warning(f"{engine['name']} build", "a debug build: several times slower", remedy)


def _check_accelerators(survey: Survey) -> Iterator[Finding]:
    for one in survey["accelerators"]:
        facts = [
            f"{one['memory_mb']} MB" if one["memory_mb"] else "",
            f"driver {one['driver']}" if one["driver"] else "",
        ]
        facts += [f"CUDA {one['cuda']}" if one["cuda"] else "", f"Vulkan {one['vulkan']}" if one["vulkan"] else ""]
        yield Finding(name="accelerator", found=", ".join([one["name"], *filter(None, facts)]))
        if one["busy"] is not None and one["busy"] > _GPU_BUSY:
            found = f"{one['name']} is {one['busy']:.0%} busy"
            yield _warning("accelerator load", found, "end what uses it (nvidia-smi names it)")


CHECKS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    _check_reality,
    _check_governor,
    _check_profile,
    _check_saver,
    _check_battery,
    _check_firmware,
    _check_heat,
    _check_memory,
    _check_load,
    _check_allowed,
    _check_build,
    _check_accelerators,
)


def _ranges(numbers: list[int]) -> str:
    """Numbers as Linux writes them: 0-3,6."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
