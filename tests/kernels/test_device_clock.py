"""A call takes on a device what the device takes: a stand-in for its clock and queue shows what Held makes of it."""

import pytest
import torch

from kernels.device_clock import LONGEST_HOLD, Held

MICRO = 1e-6


class Device:
    """A queue that works one thing after another, and a host that fills it. Both have a time of their own."""

    def __init__(self):
        self.host = self.free = 0.0  # seconds: the host's now, and when the queue will be empty
        self.cold = False
        self.slept = []

    def launch(self, host, seconds):
        """A kernel that takes the host `host` seconds to launch, and the device `seconds`."""
        self.host += host
        self.free = max(self.host, self.free) + seconds

    def flush(self):
        self.launch(5 * MICRO, 35 * MICRO)
        self.cold = True

    def sleep(self, seconds):
        self.launch(5 * MICRO, seconds)
        self.slept.append(seconds)

    def event(self):
        return Event(self)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.device.host += MICRO
        self.at = max(self.device.host, self.device.free)

    def query(self):
        return self.at <= self.device.host

    def synchronize(self):
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.mark.parametrize("host", [1, 40, 400], ids=lambda host: f"{host} us a launch")
@pytest.mark.parametrize("kernels", [1, 5])
def test_what_the_host_takes_to_launch_is_not_in_the_time_of_the_device(host, kernels):
    device = Device()

    def call():
        for _ in range(kernels):
            device.launch(host * MICRO, 10 * MICRO)

    held = Held(device, {"call": kernels * host * MICRO})
    for _ in range(3):
        seconds, late = held.once("call", call)
        assert seconds == pytest.approx(kernels * 10 * MICRO, abs=2 * MICRO) and not late
    assert device.cold


def test_a_call_that_is_launched_late_does_not_gain_on_one_that_is_launched_at_once():
    """The flush is over before the slow one is launched; and a hold that was guessed too short is made longer."""
    device = Device()
    calls = {"at once": lambda: device.launch(2 * MICRO, 10 * MICRO)}
    calls["late"] = lambda: [device.launch(300 * MICRO, 5 * MICRO) for _ in range(2)]
    held = Held(device, dict.fromkeys(calls, 10 * MICRO))
    found = {name: held.once(name, call)[0] for name, call in calls.items()}
    assert found["late"] == pytest.approx(found["at once"], rel=0.2)
    assert max(device.slept) > 600 * MICRO  # it took several tries


def test_a_call_that_waits_for_the_device_is_timed_and_said_to_be_late():
    device = Device()

    def call():
        device.launch(10 * MICRO, 10 * MICRO)
        device.host = max(device.host, device.free)
        device.launch(10 * MICRO, 10 * MICRO)

    seconds, late = Held(device, {"call": 20 * MICRO}).once("call", call)
    assert late and 20 * MICRO < seconds < 40 * MICRO
    assert max(device.slept) <= LONGEST_HOLD


def test_the_tuner_times_by_it(monkeypatch):
    """Two launches for which a host takes longer than it is given at first: the device's time alone counts."""
    tune = pytest.importorskip("kernels.tune")
    device = Device()
    monkeypatch.setattr(tune, "device_clock", lambda _: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    found = tune.milliseconds(lambda: [device.launch(1000 * MICRO, 10 * MICRO) for _ in range(2)], 7)
    assert found == pytest.approx(0.02, abs=0.002) and device.slept[0] == 2 * tune.HOST_SECONDS
