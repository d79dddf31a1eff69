"""POST /v1/chat/completions."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from engine.types import SamplingParams, Thoughts
from server.answer_reader import AnswerReader
from server.chat_format import ChatFormat
from server.chat_profile import ChatProfile
from server.chat_schemas import ChatRequest
from server.chosen_tools import calls_are_marked, grammar_of_request, has_form
from server.conversation import conversation_of
from server.disconnect import DisconnectWatch
from server.envelope import record_of
from server.generation import build_call, off_loop_if_long
from server.reasoning import Markers, ThoughtSplitter
from server.request_effects import note_who, said_with_answer
from server.sampling import check_text_length, completion_budget, requested_max_tokens, sampling_params, seed_of
from server.service import CompletionService, new_id
from server.thoughts import thoughts_of
from server.tools.families import parser
from server.tools.parts import Tool
from server.validation import parse_chat


class ChatCompletions:
    """ASGI endpoint: a conversation in, the assistant's next turn out."""

    def __init__(self, service: CompletionService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        service = self._service
        body = await service.read_body(scope, receive)
        request = await off_loop_if_long(len(body), lambda: parse_chat(body))
        ready = service.check(request)
        note_who(request, record_of(scope))
        profile = service.context.prompts.profile
        conversation = await off_loop_if_long(len(body), lambda: conversation_of(request, profile))
        check_text_length(conversation.num_content_chars, ready, service.context.max_chars_per_token, "messages")
        requested, n, seed = requested_max_tokens(request), request.n or 1, seed_of(request)
        with service.admission.reserve(n):
            async with DisconnectWatch(receive):
                grammar = await grammar_of_request(
                    request, profile, service.context.prompts.markers.ids, service.context.grammars, len(body)
                )
                prompt = await off_loop_if_long(len(body), lambda: service.context.prompts.chat(conversation))
                thoughts = thoughts_of(
                    profile,
                    service.context.prompts.markers,
                    is_thinking=prompt.is_thinking,
                    wanted=conversation.thinks,
                    budget=request.thinking.budget_tokens if request.thinking else None,
                    has_form=bool(grammar),
                )
                budget = completion_budget(len(prompt.token_ids), requested, ready, "messages")
                call = build_call(
                    new_id("chatcmpl-"),
                    request,
                    record_of(scope),
                    [(prompt.token_ids, _sampling(request, budget, seed))],
                    grammar=grammar,
                    prediction_ids=await service.prediction_ids(request, ready),
                    shown_ids=service.context.prompts.markers.shown_ids if thoughts or _is_told(request) else (),
                    thoughts=thoughts,
                )
                answer_format = ChatFormat(
                    call.id,
                    request,
                    service.context.vocabulary,
                    lambda: _reader(request, profile, thoughts),
                    profile.new_call_id,
                    said_with_answer(request, ready.fingerprint),
                )
                await service.answer(call, answer_format, scope, send)


def _reader(request: ChatRequest, profile: ChatProfile, thoughts: Thoughts | None) -> AnswerReader:
    """What reads one choice; calls are looked for only where the model was told of tools."""
    tools = [Tool(tool.function.name, tool.function.parameters) for tool in request.tools or ()]
    calls = None
    if profile.family_name and _is_told(request):
        known = [] if profile.family_name == "llama3_json" and calls_are_marked(request) else tools
        calls = parser(profile.family_name, known, only_first=has_form(request))
    if thoughts is None:
        return AnswerReader(None, calls)
    return AnswerReader(ThoughtSplitter(Markers(thoughts.start, thoughts.end), is_open=thoughts.is_open), calls)


def _is_told(request: ChatRequest) -> bool:
    """Whether the model is told of tools."""
    return bool(request.tools) and request.tool_choice != "none"


def _sampling(request: ChatRequest, max_tokens: int, seed: int) -> SamplingParams:
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return sampling_params(request, max_tokens=max_tokens, logprobs=logprobs, seed=seed)
