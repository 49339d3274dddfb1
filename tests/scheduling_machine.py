"""Any traffic and any trouble, in virtual time: Hypothesis chooses, `CheckedWorld` watches."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app.domain.priority import Priority
from app.domain.status import Status, StopReason
from app.models.restarts import RestartLimits
from app.scheduling.actions import Limits
from bench.world import Code, Model, Outcome, Request, Spec
from tests.scheduling_rules import CheckedWorld

AGING, HOLD = 30.0, 10.0


sizes = st.sampled_from([2000, 3000, 4000, 6000, 9000, 12_000])


seconds = st.sampled_from([0.5, 1.0, 3.0, 8.0, 20.0, 45.0, 100.0])


pick = st.integers(0, 999)


specs = st.builds(
    Spec,
    alias=st.just(""),
    mb=sizes,
    load_s=st.sampled_from([1.0, 4.0, 25.0]),
    slots=st.sampled_from([1, 1, 2]),
    pinned=st.sampled_from([False] * 7 + [True]),
    idle_timeout_s=st.sampled_from([None, 30.0, 300.0]),
    devices=st.sampled_from([("0",), ("0",), ("0", "1"), ("1",)]),
    overhead_mb=st.sampled_from([0, 400]),
)


def named(number: int, spec: Spec, devices: int) -> Spec:
    """The same with a name of its own, on devices that are there."""
    where = tuple(d for d in spec.devices if int(d) < devices) or ("0",)
    return Spec(**{**vars(spec), "alias": "abcdef"[number], "devices": where})


class Scheduling(RuleBasedStateMachine):
    """Hypothesis chooses the models and what happens to them; `CheckedWorld` watches."""

    code = Code()
    world: CheckedWorld
    models: list[Model]

    @initialize(
        specs=st.lists(specs, min_size=3, max_size=5),
        device_mb=st.sampled_from([[10_000], [10_000], [16_000], [10_000, 8000]]),
        max_models=st.sampled_from([9, 9, 2, 1]),
        hold=st.sampled_from([HOLD, HOLD, 0.0, 60.0]),
    )
    def begin(self, specs: list[Spec], device_mb: list[int], max_models: int, hold: float) -> None:
        made = [named(i, s, len(device_mb)) for i, s in enumerate(specs)]
        self.world = CheckedWorld(
            made,
            device_mb,
            Limits(max_models, hold, AGING),
            min_free_mb=500,
            max_waiting=8,
            restarts=RestartLimits(max_restarts=1, window_s=600, load_retries=1),
            code=self.code,
        )
        self.models = list(self.world.models.values())

    # --- clients

    @rule(
        which=pick, priority=st.sampled_from(Priority), service_s=seconds, count=st.sampled_from([1, 1, 2, 4])
    )
    def arrive(self, which: int, priority: Priority, service_s: float, count: int) -> None:
        for _ in range(count):
            self.world.arrive(self._model(which).spec.alias, priority, service_s)
        self.world.run(self.world.now)

    @rule(which=pick)
    def leave(self, which: int) -> None:
        there: list[Request] = [r for r in self.world.requests if r.outcome is None]
        if there:
            self.world.leave(there[which % len(there)])
            self.world.run(self.world.now)

    @rule()
    def all_who_wait_for_a_load_leave(self) -> None:
        for model in self.world.candidates():
            for request in list(model.requests.values()):
                self.world.leave(request)
        self.world.run(self.world.now)

    # --- time

    @rule(duration=seconds)
    def time_passes(self, duration: float) -> None:
        self.world.run(self.world.now + duration)

    @rule()
    def time_passes_until_the_next_event(self) -> None:
        if (when := self.world.next_event()) < float("inf"):
            self.world.run(when)

    # --- trouble and management

    @rule(kind=st.sampled_from(["crash", "crash", "eject", "eject now", "others", "preload"]), which=pick)
    def trouble(self, kind: str, which: int) -> None:
        model = self._model(which)
        if model.status is Status.FAILED:  # since an earlier trouble
            self.world.reset(model)
        if kind == "crash" and model.status.has_process:
            self.world.crash(model)
        elif kind == "eject":
            self.world.drain(model, StopReason.MANUAL)
        elif kind == "eject now" and model.status.has_process and model.status is not Status.STOPPING:
            self.world.stop(model, StopReason.MANUAL)
        elif kind == "others":
            self._other_programs(which)
        elif kind == "preload":
            model.life.want_preload()
        self.world.reconcile_soon()
        self.world.run(self.world.now)

    def _other_programs(self, which: int) -> None:
        devices = list(self.world.devices.values())
        devices[which % len(devices)].others_mb = (0, 0, 2000, 6000)[which // 7 % 4]

    # --- always

    @invariant()
    def the_accounts_are_true(self) -> None:
        if hasattr(self, "world"):
            self.world.check_accounts()

    @invariant()
    def nobody_has_to_look_for_something_to_happen(self) -> None:
        if hasattr(self, "world"):
            self.world.check_nothing_is_missed()

    def teardown(self) -> None:
        """Rule 7: when nothing comes any more, everything ends, without any time-out."""
        if not hasattr(self, "world"):
            return
        self.world.run()
        assert all(r.outcome is not None for r in self.world.requests), "somebody waits for ever"
        served = [r for r in self.world.requests if r.outcome is Outcome.SERVED]
        assert all(r.ended == r.granted + r.service_s for r in served)
        self.world.check_accounts()

    def _model(self, which: int) -> Model:
        return self.models[which % len(self.models)]


def run_machine(machine: type[Scheduling], examples: int) -> None:
    """The same examples each time. A failing one is shown as found: to shrink it takes minutes."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            phases=(Phase.generate,),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
