"""Families that call tools: minimal equivalents of their chat templates, and a call as their models"
" write it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.engine.templates import tokenizers

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


_DEEPSEEK_MARKS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)


@dataclass(frozen=True)
class Family:
    """A family and its template.

    Attributes:
        written: A reply that calls ``get_weather`` for two days in Paris, without its end.
        end: What the template writes after it.
        special, plain: Control tokens that are special in the tokenizer, and others.
        identity: The id of the call, if the model writes one.
    """

    name: str
    template: str
    written: str
    end: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    identity: str = ""

    @cached_property
    def tokenizer(self) -> Any:
        """mlx-lm's wrapper of a small tokenizer, with the parser that it chooses by the template."""
        from mlx_lm.tokenizer_utils import TokenizerWrapper, _infer_tool_parser

        wrapper = tokenizers.byte_level(self.special, self.plain, template=self.template)
        fast: Any = wrapper._tokenizer
        kind = _infer_tool_parser(fast)  # type: ignore[no-untyped-call]
        if kind is None:
            return wrapper
        module = importlib.import_module(f"mlx_lm.tool_parsers.{kind}")
        return TokenizerWrapper(
            fast,
            tool_parser=module.parse_tool_call,
            tool_call_start=module.tool_call_start,
            tool_call_end=module.tool_call_end,
        )


def _tokens(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_IM = ("<|im_start|>", "<|im_end|>")
_IM_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content"
    " }}\n\n{% endif %}"
    "# Tools\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{%"
    " endif %}"
)
_IM_RESULTS = (
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _chat_ml(call: str) -> str:
    return (
        _IM_TOOLS
        + "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}"
        "{% for tool_call in m.tool_calls or [] %}{% if not loop.first or m.content %}"
        "{{ '\\n' }}{% endif %}{% set f = tool_call.function %}"
        + call
        + "{% endfor %}<|im_end|>\n"
        + _IM_RESULTS
    )


_MISTRAL_MARKS = (
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)


def _mistral(identity: str = "") -> str:
    """Mistral's template since 2025; ``identity`` is written between a call's name and its arguments."""
    return (
        "<s>{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in"
        " messages %}"
        "{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
        "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
        "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}"
        + identity
        + "[ARGS]{{ c.function.arguments | tojson }}{% endfor %}</s>{% endif %}{% endfor %}"
    )


FAMILIES = [
    Family(
        "Qwen2.5, Qwen3, Hermes",
        _chat_ml(
            "{% if f %}{% set tool_call = f %}{% endif %}"
            '<tool_call>\n{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson'
            " }}}\n</tool_call>"
        ),
        'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days":'
        " 2}}\n</tool_call>",
        "<|im_end|>\n",
        _IM,
        ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    Family(
        "Qwen3 Coder, Qwen3.5",
        _chat_ml(
            "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n"
            "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
        ),
        "Let me look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "<|im_end|>\n",
        _IM,
        ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    Family(
        "Mistral Nemo",
        "<s>{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}{% for m in"
        " messages %}"
        "{% if m.role == 'user' %}{% if tools and m == last %}[AVAILABLE_TOOLS]{{ tools | tojson }}"
        "[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('bad id') }}"
        "{% endif %}"
        '[TOOL_RESULTS]{"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id'
        ' }}"}[/TOOL_RESULTS]'
        "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
        "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{'
        ' c.id }}"}'
        "{{ '' if loop.last else ', ' }}{% endfor %}]</s>"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
        "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}{% endfor %}",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}, "id": "abc123XYZ"}]',
        "</s>",
        (
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        identity="abc123XYZ",
    ),
    Family(
        "Mistral Small 3.2",
        _mistral("[CALL_ID]{{ c.id }}"),
        'Let me look.[TOOL_CALLS]get_weather[CALL_ID]abc123XYZ[ARGS]{"city": "Paris", "days": 2}',
        "</s>",
        (*_MISTRAL_MARKS, "[CALL_ID]"),
        identity="abc123XYZ",
    ),
    Family(
        "Ministral 3, Devstral 2",
        _mistral(),
        'Let me look.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}',
        "</s>",
        _MISTRAL_MARKS,
    ),
    Family(
        "Llama 3.1",
        "<|begin_of_text|>{% macro h(r) %}<|start_header_id|>{{ r }}<|end_header_id|>\n\n{% endmacro %}"
        "{% if tools %}{{ h('system') }}Environment: ipython\n{% for t in tools %}{{ t | tojson(indent=4)"
        " }}\n{% endfor %}"
        "<|eot_id|>{% endif %}{% for m in messages %}"
        "{% if m.role in ('tool', 'ipython') %}{{ h('ipython') }}{{ m.content | tojson }}<|eot_id|>"
        "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}"
        "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
        "{% set c = m.tool_calls[0].function %}{{ h('assistant') }}"
        '{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}<|eot_id|>'
        "{% else %}{{ h(m.role) }}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ h('assistant') }}{% endif %}",
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}',
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    ),
    Family(
        "Gemma 4",
        '{% macro val(v) %}{% if v is string %}<|"|>{{ v }}<|"|>{% else %}{{ v | tojson }}{% endif %}{%'
        " endmacro %}"
        "<bos>{% if tools or messages[0].role == 'system' %}<|turn>system\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{% for t in tools or [] %}<|tool>declaration:{{ t.function.name }}{{ '{' }}description:{{"
        " val(t.function.description) }}"
        "{{ '}' }}<tool|>{% endfor %}<turn|>\n{% endif %}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'tool' %}<|tool_response>response:{{ m.name }}{{ '{' }}value:{{ val(m.content)"
        " }}{{ '}' }}"
        "<tool_response|>{% else %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<|tool_call>call:{{ c.function.name }}{{ '{' }}"
        "{% for k, v in c.function.arguments | items %}{{ k }}:{{ val(v) }}{{ '' if loop.last else ','"
        " }}{% endfor %}"
        "{{ '}' }}<tool_call|>{% endfor %}{% if not m.tool_calls %}<turn|>\n{% endif %}{% endif %}{%"
        " endfor %}"
        "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|turn>model\n{% endif %}",
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>',
        "<|tool_response>",
        (
            "<bos>",
            "<|turn>",
            "<turn|>",
            "<|tool>",
            "<tool|>",
            "<|tool_call>",
            "<tool_call|>",
            '<|"|>',
            "<|tool_response>",
            "<tool_response|>",
        ),
    ),
    Family(
        "GLM-4.5",
        "[gMASK]<sop>{% if tools %}<|system|>\n# Tools\n{% for t in tools %}{{ t |"
        " tojson(ensure_ascii=False) }}\n"
        "{% endfor %}{% endif %}{% for m in messages %}{% if m.role == 'tool'"
        " %}<|observation|>\n<tool_response>\n"
        "{{ m.content }}\n</tool_response>{% else %}<|{{ m.role }}|>\n{{ m.content }}{% for c in"
        " m.tool_calls or [] %}{{ '\\n' }}"
        "<tool_call>{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}<arg_key>{{ k"
        " }}</arg_key>\n"
        "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor"
        " %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "Let me look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        "<|observation|>",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    Family(
        "Kimi K2",
        "{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}{%"
        " for m in messages %}"
        "{% if m.role == 'tool' %}<|im_system|>{{ m.name }}<|im_middle|>## Return of {{ m.tool_call_id"
        " }}\n{{ m.content }}"
        "{% else %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}{% if m.tool_calls %}"
        "<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id"
        " }}<|tool_call_argument_begin|>"
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{"
        " c.function.arguments | tojson }}"
        "{% endif %}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>{% endif %}{% endif"
        " %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
        "Let me look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        "<|tool_call_argument_begin|>"
        '{"city": "Paris", "days": 2}<|tool_call_end|><|tool_calls_section_end|>',
        "<|im_end|>",
        (
            "<|im_system|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_middle|>",
            "<|im_end|>",
            "<|tool_call_begin|>",
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ),
        identity="functions.get_weather:0",
    ),
    Family(
        "LFM2.5 8B, which writes calls",
        "<|startoftext|>{% if tools %}<|im_start|>system\nList of tools: <|tool_list_start|>[{% for t in"
        " tools %}"
        "{{ t | tojson }}{% endfor %}]<|tool_list_end|><|im_end|>\n{% endif %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}<|tool_call_start|>[{% for c in"
        " m.tool_calls %}"
        "{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson }}"
        "{{ '' if loop.last else ', ' }}{% endfor %}){{ '' if loop.last else ', ' }}{% endfor"
        " %}]<|tool_call_end|>{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        '<|tool_call_start|>[get_weather(city="Paris", days=2)]<|tool_call_end|>',
        "<|im_end|>\n",
        (
            "<|startoftext|>",
            *_IM,
            "<|tool_list_start|>",
            "<|tool_list_end|>",
            "<|tool_call_start|>",
            "<|tool_call_end|>",
        ),
    ),
    Family(
        "MiniMax M2",
        "]~!b[{% if tools %}]~b]system\n{% for t in tools %}<tool>{{ t.function | tojson }}</tool>\n{%"
        " endfor %}[e~[\n"
        "{% endif %}{% for m in messages %}]~b]{{ 'ai' if m.role == 'assistant' else m.role }}\n{{"
        " m.content }}"
        '{% if m.tool_calls %}{{ "\\n" }}<minimax:tool_call>\n{% for c in m.tool_calls %}<invoke name="{{'
        ' c.function.name }}">\n'
        '{% for k, v in c.function.arguments.items() %}<parameter name="{{ k }}">{{ v if v is string else'
        " v | tojson }}"
        "</parameter>\n{% endfor %}</invoke>\n{% endfor %}</minimax:tool_call>{% endif %}[e~[\n{% endfor %}"
        "{% if add_generation_prompt %}]~b]ai\n{% endif %}",
        'Let me look.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter'
        ' name="city">Paris</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
        "[e~[\n",
        ("]~!b[", "]~b]", "[e~["),
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    Family(
        "DeepSeek V3",
        "<｜begin▁of▁sentence｜>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif"
        " %}{% endfor %}"
        "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
        "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}<｜Assistant｜>"
        "{% elif m.role == 'assistant' and m.content is none %}<｜tool▁calls▁begin｜>{% for c in"
        " m.tool_calls %}"
        "<｜tool▁call▁begin｜>{{ c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' +"
        " c.function.arguments + '\n```' }}"
        "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "{% elif m.role == 'assistant' %}{{ m.content }}<｜end▁of▁sentence｜>"
        "{% elif m.role == 'tool' %}<｜tool▁outputs▁begin｜>{{ m.content }}<｜tool▁outputs▁end｜>{% endif %}"
        "{% endfor %}",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city":'
        ' "Paris", "days": 2}'
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜end▁of▁sentence｜>",
        (
            *_DEEPSEEK_MARKS,
            "<｜tool▁outputs▁begin｜>",
            "<｜tool▁outputs▁end｜>",
        ),
    ),
    Family(
        "gpt-oss",
        "<|start|>system<|message|>You are ChatGPT.<|end|>{% if tools or messages[0].role == 'system' %}"
        "<|start|>developer<|message|>{% if messages[0].role == 'system' %}{{ messages[0].content }}{%"
        " endif %}"
        "{% for t in tools or [] %}type {{ t.function.name }} = {{ t.function.parameters | tojson }};\n{%"
        " endfor %}<|end|>"
        "{% endif %}{% for m in messages if m.role != 'system' %}{% if m.role == 'tool' %}"
        "<|start|>functions.{{ m.name }} to=assistant<|channel|>commentary<|message|>{{ m.content |"
        " tojson }}<|end|>"
        "{% elif m.tool_calls %}{% set f = m.tool_calls[0].function"
        " %}<|start|>assistant<|channel|>commentary "
        "to={{ 'functions.' + f.name }} <|constrain|>json<|message|>{{ f.arguments | tojson }}<|call|>"
        "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Paris", "days": 2}<|call|>',
        "<|start|>",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>"),
    ),
    Family(
        "Granite 3.3, which writes definitions only",
        "<|start_of_role|>system<|end_of_role|>{% if messages[0].role == 'system' %}{{"
        " messages[0].content }}{% else %}When a tool is required, respond only with <|tool_call|> followed"
        " by a JSON list of tools used.{% endif %}<|end_of_text|>\n"
        "{% if tools %}<|start_of_role|>available_tools<|end_of_role|>{{ tools | tojson(indent=4)"
        " }}<|end_of_text|>\n{% endif %}{% for m in messages if m.role != 'system' %}"
        "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}]',
        "<|end_of_text|>\n",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
    ),
    Family(
        "Granite 4",
        _chat_ml(
            '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>'
        )
        .replace("<|im_start|>assistant\n", "<|start_of_role|>assistant<|end_of_role|>")
        .replace("<|im_start|>", "<|start_of_role|>")
        .replace("<|im_end|>", "<|end_of_text|>"),
        'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days":'
        " 2}}\n</tool_call>",
        "<|end_of_text|>\n",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    Family(
        "LFM2 and LFM2.5, which write definitions only",
        "<|startoftext|>{% set ns = namespace(system='') %}{% if messages[0].role == 'system' %}"
        "{% set ns.system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
        "{% if tools %}{% set ns.system = ns.system + 'List of tools: <|tool_list_start|>[' %}"
        "{% for t in tools %}{% set ns.system = ns.system + (t | tojson) %}{% endfor %}"
        "{% set ns.system = ns.system + ']<|tool_list_end|>' %}{% endif %}"
        "{% if ns.system %}{{ '<|im_start|>system\n' + ns.system + '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{% set content = m.content %}{% if m.role == 'tool' %}"
        "{% set content = '<|tool_response_start|>' + content + '<|tool_response_end|>' %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        '<|tool_call_start|>[get_weather(city="Paris", days=2)]<|tool_call_end|>',
        "<|im_end|>\n",
        (
            "<|startoftext|>",
            *_IM,
            "<|tool_list_start|>",
            "<|tool_list_end|>",
            "<|tool_call_start|>",
            "<|tool_call_end|>",
            "<|tool_response_start|>",
            "<|tool_response_end|>",
        ),
    ),
    Family(
        "SmolLM3, which writes definitions only",
        "<|im_start|>system\n## Custom Instructions\n\n{% if messages[0].role == 'system' %}{{"
        " messages[0].content }}{% endif %}{% if xml_tools or python_tools or tools %}### Tools\n\n"
        "{% if tools %}{% set xml_tools = tools %}{% endif %}<tools>\n"
        "{% for t in xml_tools[:] %}{{ t | string }}\n{% endfor %}</tools>\n\nFor each function call,"
        " return a json object within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>{% endif %}'
        "<|im_end|>\n{% for m in messages %}{% set content = m.content if m.content is string else '' %}"
        "{% if m.role == 'user' %}{{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}"
        "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + content.lstrip('\n')"
        " + '<|im_end|>\n' }}"
        "{% elif m.role == 'tool' %}{{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days":'
        " 2}}\n</tool_call>",
        "<|im_end|>\n",
        _IM,
        ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    Family(
        "Command R7B, Command A",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{% for t in tools or [] %}"
        '{"name": "{{ t.function.name }}", "description": "{{ t.function.description }}", "parameters": {{'
        " t.function.parameters | tojson }}}\n{% endfor %}{% if messages[0].role == 'system' %}{{"
        " messages[0].content }}{% endif %}<|END_OF_TURN_TOKEN|>{% set ns = namespace(n=0) %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>"
        "{% elif m.role == 'assistant' %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% if m.tool_calls %}"
        "<|START_ACTION|>[\n{% for c in m.tool_calls %}"
        '    {"tool_call_id": "{{ ns.n }}", "tool_name": "{{ c.function.name }}", "parameters": {{'
        " c.function.arguments | tojson }}}{{ '' if loop.last else ',' }}\n{% set ns.n = ns.n + 1 %}"
        "{% endfor %}]<|END_ACTION|>{% else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}"
        "<|END_OF_TURN_TOKEN|>{% elif m.role == 'tool' %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>"
        "<|START_TOOL_RESULT|>[{{ m.content | tojson }}]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters":'
        ' {"city": "Paris", "days": 2}}\n]<|END_ACTION|>',
        "<|END_OF_TURN_TOKEN|>",
        (
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            "<|START_TOOL_RESULT|>",
            "<|END_TOOL_RESULT|>",
        ),
    ),
    Family(
        "DeepSeek V3.1, which writes calls only",
        "<｜begin▁of▁sentence｜>{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
        "{% set ns = namespace(user=false) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% set ns.user = true %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'assistant' %}{% if ns.user %}<｜Assistant｜></think>{% endif %}"
        "{% set ns.user = false %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{{ '<｜tool▁calls▁begin｜>' if loop.first else '' }}{{ '<｜tool▁call▁begin｜>' + c.function.name +"
        " '<｜tool▁sep｜>' + c.function.arguments + '<｜tool▁call▁end｜>' }}"
        "{{ '<｜tool▁calls▁end｜>' if loop.last else '' }}{% endfor %}<｜end▁of▁sentence｜>"
        "{% elif m.role == 'tool' %}{% set ns.user = false %}"
        "{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and ns.user %}<｜Assistant｜></think>{% endif %}",
        "Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris", "days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜end▁of▁sentence｜>",
        (
            *_DEEPSEEK_MARKS,
            "<｜tool▁output▁begin｜>",
            "<｜tool▁output▁end｜>",
        ),
        ("<think>", "</think>"),
    ),
    *(
        Family(
            name,
            "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
            "{{ m.content }}"
            "{% if m.tool_calls %}" + start + "[{% for c in m.tool_calls %}"
            '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{{ "" if'
            ' loop.last else ", " }}{% endfor %}]' + end + "{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            f'Let me look.{start}[{{"name": "get_weather", "arguments": {{"city": "Paris", "days": 2}}}}]'
            f"{end}",
            "<|im_end|>\n",
            _IM,
            plain,
        )
        for name, start, end, plain in (
            ("Nemotron Nano 2", "<TOOLCALL>", "</TOOLCALL>", ()),
            ("Apriel", "<tool_calls>", "</tool_calls>", ("<tool_calls>", "</tool_calls>")),
        )
    ),
    Family(
        "without a place for tools",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days":'
        " 2}}\n</tool_call>",
        "<|im_end|>\n",
        _IM,
    ),
    Family(
        "with other role orders and without a place for tools",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% for m"
        " in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate')"
        " }}{% endif %}"
        "<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}".replace(
            "{{ m.role }}", "{{ 'model' if m.role == 'assistant' else m.role }}"
        ),
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
        "<end_of_turn>\n",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
]
