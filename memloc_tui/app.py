"""The explorer's app: it paints first, then opens the session, and it ends the session when it goes."""

from __future__ import annotations

import gc
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from time import strftime
from typing import TYPE_CHECKING, Any, Literal

from textual import constants
from textual.app import SystemCommand
from textual.binding import Binding
from textual.css.query import NoMatches
from textual.driver import Driver
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import MountError
from textual.worker import Worker, WorkerState

from memloc_tui.glyphs import visible
from memloc_tui.screens.explorer import Explorer
from memloc_tui.typing_ahead import TypingAhead
from memloc_tui.widgets.panels import PANELS, panel_type

if TYPE_CHECKING:
    from textual.dom import DOMNode
    from textual.worker import WorkType

    from memloc_core.errors import EngineDied
    from memloc_tui.config import Config
    from memloc_tui.screens.messages import Said
    from memloc_tui.session import Session
    from memloc_tui.settings import Settings
    from memloc_tui.state import Resume

MESSAGES_KEPT = 200
SAVE_AFTER = 0.8  # seconds of quiet before the resume state is written
ENGINE = {
    "starting": "engine starting",
    "loading": "reading the weights",
    "ready": "ready",
    "busy": "computing",
    "died": "engine ended · r asks again",
    "refused": "not opened · r tries again",
}


class MemlocApp(TypingAhead, inherit_bindings=False):
    """`session` is for whoever has one already (tests); else it is made from `settings` after the first frame."""

    TITLE = "memloc"
    CSS_PATH = "memloc.tcss"
    ALLOW_SELECT = False  # Shift and the mouse select, as everywhere in a terminal
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS = [
        Binding("question_mark", "help", "help", id="app.help", tooltip="Every key", key_display="?"),
        Binding(
            "ctrl+p", "command_palette", "palette", id="app.palette", tooltip="Every action by name", priority=True
        ),
        Binding("l", "messages", "messages", id="app.messages", tooltip="The last messages of this sitting"),
        Binding("ctrl+l", "redraw", "redraw", id="app.redraw", tooltip="Draw the whole screen anew", priority=True),
        Binding("q", "leave", "quit", id="app.quit", tooltip="Quit; asks while a job is running"),
        Binding("ctrl+q", "leave", "quit", id="app.quit_too", tooltip="Quit, from wherever you are", priority=True),
        Binding(
            "ctrl+c",
            "interrupt",
            "quit",
            id="app.interrupt",
            priority=True,
            tooltip="Quit, from wherever you are; with text selected in an input: copy it",
        ),
    ]

    def __init__(
        self, settings: Settings, session: Session | None = None, *, config: Config | None = None, tour: bool = False
    ) -> None:
        super().__init__()
        self.settings = settings
        self.config = config
        self.keys: dict[str, str] = {}  # the person's own, by binding, once they are checked
        self.session: Session | None = None
        self._given = session
        self.refusal = ""  # why there is no model, in a sentence
        self.resume: Resume  # once it is read, after the first frame
        self._resumed = False
        self._opening = False
        self._death: EngineDied | None = None
        self._save_timer: Timer | None = None
        self._wanted_theme = config.theme if config is not None else None
        self.wants_tour = tour
        self._said: deque[Said] = deque(maxlen=MESSAGES_KEPT)  # newest first
        self.animation_level = "none"

    def get_driver_class(self) -> type[Driver]:
        """Textual's own, but on a terminal one that sends less down the line, unless TEXTUAL_DRIVER names another."""
        driver = super().get_driver_class()
        if driver.__name__ != "LinuxDriver" or constants.DRIVER is not None:
            return driver
        from memloc_tui.thrifty import ThriftyDriver

        return ThriftyDriver

    def get_default_screen(self) -> Screen[None]:
        return Explorer(self.size)

    @property
    def explorer(self) -> Explorer:
        screen = self.screen_stack[0]
        assert isinstance(screen, Explorer)
        return screen

    def on_mount(self) -> None:
        if not self.is_headless:
            self._end_when_told()
            self._end_with_the_terminal()
        if self._wanted_theme:
            if self._wanted_theme in self.available_themes:
                self.theme = self._wanted_theme
            else:
                self.say(f"There is no theme called {self._wanted_theme}; ctrl+p lists them.", severity="warning")
        self.call_after_refresh(self.reopen)

    def _end_when_told(self) -> None:
        """SIGTERM leaves as `q` does, so that the terminal is given back in order; a second one ends us at once."""
        import asyncio
        import signal

        loop = asyncio.get_running_loop()

        def told() -> None:
            loop.remove_signal_handler(signal.SIGTERM)
            self.exit(return_code=128 + signal.SIGTERM)

        loop.add_signal_handler(signal.SIGTERM, told)

    def _end_with_the_terminal(self) -> None:
        """A terminal that is closed ends us, also where its SIGHUP does not come here: ignored, as under nohup, or sent
        to another session."""
        import asyncio
        import select
        import signal

        terminal = sys.__stdin__  # where Textual reads
        if not hasattr(select, "epoll") or terminal is None or not terminal.isatty():
            return
        watch = select.epoll()
        watch.register(terminal.fileno(), 0)  # for nothing but what is always told: that it hung up

        def hung_up() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGHUP)

        asyncio.get_running_loop().add_reader(watch, hung_up)

    def _handle_exception(self, error: Exception) -> None:
        """What opens while we end, as a dialog when SIGTERM comes, has none of its children: that is no failure."""
        if not (self._exit and isinstance(error, NoMatches | MountError)):
            super()._handle_exception(error)

    # --------------------------------------------------------------------------------------------------------- session

    def reopen(self) -> None:
        """Open the session, or have its engine open the model once more after it could not."""
        if not self._opening:  # else there would be two of them, each with an engine
            self._opening = True
            work: WorkType[None] = self._open
            self.run_worker(work, group="open", exclusive=True, exit_on_error=False)

    async def _open(self) -> None:
        try:
            await self._open_session()
        finally:
            self._opening = False

    async def _open_session(self) -> None:
        from memloc_core.errors import EngineDied, MemlocError
        from memloc_tui import state

        if not self._resumed:
            await self.explorer.begin()
            if not gc.isenabled():  # see `start`
                gc.freeze()  # what is there by now stays: no collection need look at it again while keys wait
                gc.enable()
            self._configure()
            self.resume, notice = state.load(self.settings.model, self.settings.paragraphs)
            self._resumed = True
            if notice:
                self.say(notice, severity="warning")
        session, self.refusal = self.session, ""
        try:
            if session is not None and session.known:
                await session.confirm()
            else:
                if session is not None:
                    await session.close()
                session = self.session = self._new_session()
                await session.open(self.explorer.part)
        except MemlocError as error:
            assert session is not None
            if not session.known:
                await session.close()
                self.session = None
                self._not_opened(str(error))
            elif isinstance(error, EngineDied):  # what the cache knows stays: the next question starts it again
                self.engine_died(error)
            else:
                self.explorer.top.show_engine(ENGINE["refused"])
                self.say(
                    f"{str(error).rstrip('.')}. What was found earlier stays here: r tries again.", severity="error"
                )

    def _new_session(self) -> Session:
        if self._given is not None:
            session: Any = self._given
            session.on_state, session.on_notice = self.engine_state, self.say
            return self._given
        from memloc_tui.session import Session

        return Session(self.settings, on_state=self.engine_state, on_notice=self.say)

    def _not_opened(self, why: str) -> None:
        self.refusal = visible(why)
        self.explorer.top.show_engine(ENGINE["refused"])
        self.explorer.fail(why)

    @property
    def no_model(self) -> str:
        """What to say where something needs the model, and there is none."""
        return f"{self.refusal.rstrip('.')}. r tries again." if self.refusal else "The model is still opening."

    def _configure(self) -> None:
        """The person's keys, and what is wrong with their configuration."""
        if self.config is None:
            return
        problems = list(self.config.problems)
        if self.config.keys:
            from memloc_tui.keys import checked

            self.keys, wrong = checked(self.config.keys, self.config.origins, self.config.path)
            problems += wrong
            self.set_keymap(self.keys)
            self.explorer.show_keys()
        for problem in problems:
            self.say(problem, severity="warning")

    def key_shown(self, binding: Binding) -> str:
        """The key that does what a binding does."""
        return self.keys.get(binding.id or "") or binding.key_display or binding.key

    def engine_state(self, state: str) -> None:
        self.explorer.top.show_engine(ENGINE.get(state, visible(state)))
        if state == "died":
            self.say("The engine ended. Nothing of yours is lost; the next question starts it again.", "warning")

    def engine_died(self, error: EngineDied) -> None:
        """Said once however many questions it took down."""
        self.explorer.top.show_engine(ENGINE["died"])
        if error is not self._death:  # every question that waits gets the same one
            self._death = error
            self.say(f"{error} Nothing of yours is lost: r asks again.", severity="error")

    async def on_unmount(self) -> None:
        self._save()
        if self.session is not None:
            await self.session.close()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """A worker that fails with what nobody foresaw is said, not swallowed."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            error = event.worker.error
            self.log.error(error)
            said = f"Something went wrong: {type(error).__name__}: {error}"
            if event.worker.group == "open":
                self._not_opened(said)
            else:
                self.say(said, severity="error")

    # ---------------------------------------------------------------------------------------------------------- saying

    def say(self, message: str, severity: Literal["information", "warning", "error"] = "information") -> None:
        """A notice that holds data as well as words: never parsed as markup. The last ones are kept for `l`."""
        from memloc_tui.screens.messages import Said

        self._said.appendleft(Said(strftime("%H:%M:%S"), severity, visible(message)))
        self.notify(visible(message), severity=severity, markup=False)

    # ---------------------------------------------------------------------------------------------------- resume state

    def save_soon(self) -> None:
        """Written a moment after the last change; an SSH drop asks nobody."""
        if self._save_timer is None:
            self._save_timer = self.set_timer(SAVE_AFTER, self._save)

    def _save(self) -> None:
        from memloc_tui import state

        self._save_timer = None
        if not self._resumed or not self.resume.paragraph:
            return
        try:
            state.save(self.settings.model, self.settings.paragraphs, self.resume)
        except OSError as error:
            if not self._save_failed:
                self._save_failed = True
                self.say(f"Where you are cannot be saved ({error.strerror}).", severity="warning")

    _save_failed = False

    # --------------------------------------------------------------------------------------------------------- actions

    def action_command_palette(self) -> None:
        from memloc_tui.screens.palette import Palette

        if not Palette.is_open(self):
            self.push_screen(Palette(id="--command-palette"))

    def search_themes(self) -> None:
        from textual.theme import ThemeProvider

        from memloc_tui.screens.palette import Palette

        self.push_screen(Palette(providers=[ThemeProvider], placeholder="Search for themes…"))

    def action_help(self) -> None:
        from memloc_tui.screens.help import Help

        self.push_screen(Help([b for b in MemlocApp.BINDINGS if isinstance(b, Binding)]))

    def action_messages(self) -> None:
        from memloc_tui.screens.messages import Messages

        self.clear_notifications()  # they are in the list, which they would cover
        self.push_screen(Messages(tuple(self._said)))

    def action_leave(self) -> None:
        """Quit, after a question if a job of the person's would be lost."""
        if not self.explorer.running:
            self.exit()
            return
        from memloc_tui.screens.confirm import Confirm

        what = "A sweep" if self.explorer.sweeping.running else "A measurement"
        question = f"{what} is running. Quit and stop it?"
        if self.explorer.unlearning.running:
            question = f"A run is going on. Quit and stop it? {self.explorer.unlearning.keeps}"
        if not isinstance(self.screen, Confirm):
            self.push_screen(Confirm(question), lambda yes: self.exit() if yes else None)

    def action_interrupt(self) -> None:
        from textual.widgets import Input, TextArea

        if isinstance(self.focused, Input | TextArea) and not self.focused.selection.is_empty:
            self.focused.action_copy()
        else:
            self.action_leave()

    def action_redraw(self) -> None:
        """After something else has written on the terminal."""
        if (glass := getattr(self._driver, "glass", None)) is not None:
            glass.forget()
        self.screen.refresh(layout=True)

    def action_nothing(self) -> None:
        """A hint in the line of keys that names keys but does nothing itself."""

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every binding of the app and of the explorer, by what it does."""

        def does(action: str, node: DOMNode) -> Callable[[], None]:
            return lambda: self.call_next(self.run_action, action, node)  # unless `check_action` says no

        for source, node in ((MemlocApp, self), (Explorer, self.explorer)):
            for binding in source.BINDINGS:
                assert isinstance(binding, Binding)
                if binding.action != "command_palette" and binding.id not in ("app.quit_too", "app.interrupt"):
                    yield SystemCommand(
                        binding.tooltip,
                        f"key {self.key_shown(binding)}",
                        does(binding.action, node),
                    )
        for tab in PANELS:
            for binding in panel_type(tab).__dict__.get("BINDINGS", ()):
                assert isinstance(binding, Binding)
                yield SystemCommand(
                    binding.tooltip,
                    f"key {self.key_shown(binding)} in the {tab.title} tab",
                    does(f"panel_key('{tab.name}','{binding.id}')", self.explorer),
                )
        tour = "Five things to see on the embedded model"
        yield SystemCommand("Take the tour", tour, does("begin_tour", self.explorer))
        yield SystemCommand("Change the theme", "Colours of the whole program", self.action_change_theme)
