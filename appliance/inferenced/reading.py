"""One answer, read as its request asked for it: text, calls, and in the end the verdict on its form.

    reading = Reading(plan, vocabulary)
    for text in answer:
        parts = reading.push(text)                    # a str is content, a Call is a call
    parts = reading.finish("stop", complete=True)     # `valid` and `reason` are then known

What this does NOT do: judge a Lark grammar that names control tokens, which leave no trace in the text. For those the
grammar's own word is taken.
"""

import json
import logging

from appliance.decoding.conformity import NO_SUCH_TIME, conforms
from appliance.decoding.grammar import Constraint, Vocabulary
from appliance.errors import InternalError
from appliance.inferenced.structure import Plan
from appliance.models.tool_calls import CallReader
from appliance.models.tool_styles import Call

log = logging.getLogger("skerry.inferenced")

_ENDED_EARLY = {
    "length": "max_tokens was reached before its end",
    "loop": "it was stopped in a loop",
    "stop": "a stop text came before its end",
}
_UNFINISHED = "the text ends before the grammar does"


class Reading:
    """What one answer says.

    Attributes:
        calls: made so far.
        valid: after `finish`, whether the answer has the form that was asked for; None if none was.
        reason: why it has not.
    """

    def __init__(self, plan: Plan, vocabulary: Vocabulary) -> None:
        self._plan, self._vocabulary = plan, vocabulary
        self._reader = CallReader(plan.style) if plan.style and plan.tools else None
        self._text: list[str] = []
        self.calls: list[Call] = []
        self.valid: bool | None = None
        self._wrong_call: str | None = None
        self.reason = ""

    def push(self, text: str) -> list[str | Call]:
        """Take text of the answer.

        Raises:
            InternalError: a call that its tool's schema does not allow.
        """
        parts: list[str | Call] = self._reader.push(text) if self._reader else [text] if text else []
        for part in parts:
            if isinstance(part, Call):
                self._check(part)
                self.calls.append(part)
            elif self._plan.form:
                self._text.append(part)
        return parts

    def finish(
        self, finish_reason: str | None, complete: bool | None, *, at_stop_text: bool = False
    ) -> list[str | Call]:
        """End the answer and judge it.

        Args:
            finish_reason: the engine's.
            complete: whether the answer came to its grammar's end, by the engine's word.
            at_stop_text: whether a stop text ended it.
        Returns:
            The last parts.
        Raises:
            InternalError: the answer is complete and has not the form that was asked for.
        """
        held = self._reader.finish() if self._reader else ""
        if self._plan.must_call:
            held = ""  # half a marker: where a call has to come, nothing is text
        if held and self._plan.form:
            self._text.append(held)
        judged, wrong = self._judged(complete)
        if wrong not in (None, NO_SUCH_TIME) and finish_reason == "stop" and complete is not False and not at_stop_text:
            raise _defect(str(wrong))
        self.valid = not wrong if judged else None
        if wrong:
            cut = at_stop_text if finish_reason == "stop" else not complete
            self.reason = _ENDED_EARLY.get(str(finish_reason), wrong) if cut else wrong
        return [held] if held else []

    def _judged(self, complete: bool | None) -> tuple[bool, str | None]:
        """Whether a form was asked for, and what is wrong with the answer."""
        if self._reader is not None and self._reader.calling:
            return True, self._wrong_call if self._reader.complete else "a call is not complete"
        if self._plan.must_call:
            return True, "there is no call"
        if self._plan.form is None:
            return False, None
        if _names_control_tokens(self._plan.form, self._vocabulary):
            return True, None if complete else _UNFINISHED
        wrong = conforms(self._plan.form, "".join(self._text), self._vocabulary)
        # What was cut may be of the form by chance: 12 of 123 is a number too.
        return True, wrong or (_UNFINISHED if complete is False else None)

    def _check(self, call: Call) -> None:
        schema = next((tool.parameters for tool in self._plan.tools if tool.name == call.name), None)
        if schema is None:
            raise _defect("there is no tool of its name")
        wrong = conforms(Constraint("json_schema", json.dumps(schema)), call.arguments)
        if wrong == NO_SUCH_TIME:
            self._wrong_call = wrong
        elif wrong is not None:
            raise _defect(wrong)


def _names_control_tokens(form: Constraint, vocabulary: Vocabulary) -> bool:
    return form.kind == "lark" and ("<[" in form.source or any(name in form.source for name in vocabulary.control))


def _defect(reason: str) -> InternalError:
    log.error("defect in an answer: InternalError: the grammar let something invalid through: %s", reason)
    return InternalError(
        f"cannot give the answer: the grammar let something invalid through ({reason})",
        hint="report this as a defect, with the schema",
    )
