"""Which of upstream's server tests are not run, and which fail without their models: reason -> names.

A name is file::function for all of its parameters, or with [parameters] for one of them.
"""

from __future__ import annotations


def by_name(lists: dict[str, str]) -> dict[str, str]:
    """{name: reason}; a name stands on a line of its own, since parameters have spaces."""
    return {name.strip(): reason for reason, names in lists.items() for name in names.strip().splitlines()}


NOT_RUN = by_name(
    {
        "needs a real model of gigabytes": """
            test_compat_anthropic::test_anthropic_thinking_with_reasoning_model
            test_completion::test_completion_stream_with_openai_library_stops
            test_infill::test_with_qwen_model
            test_lora::test_with_big_model
            test_tool_call::test_completion_with_required_tool_real_model
            test_tool_call::test_weather
            test_tool_call::test_calc_result
            test_tool_call::test_thoughts
            test_tool_call::test_hello_world
        """,
        "upstream skips it: it fails there too": """
            test_completion::test_cache_vs_nocache_prompt
        """,
        "fetches a page from the internet": """
            test_proxy::test_mcp_proxy
        """,
        "needs docker or podman with an image of busybox": """
            test_tools_builtin::test_tools_builtin_runtime_header
            test_tools_builtin::test_tools_builtin_docker_runtime_cleans_up_spawned_container
        """,
    }
)

EXPECTED_TO_FAIL = by_name(
    {
        "expects the words of stories260K, or how many tokens a text is to it": r"""
            test_chat_completion::test_chat_completion
            test_chat_completion::test_chat_completion_cached_tokens
            test_chat_completion::test_chat_completion_stream
            test_chat_completion::test_chat_completion_with_openai_library
            test_compat_oai_responses::test_responses_with_openai_library
            test_compat_oai_responses::test_responses_stream_with_openai_library
            test_completion::test_completion
            test_completion::test_completion_stream
            test_completion::test_completion_with_openai_library
            test_completion::test_completion_stream_with_openai_library
            test_ctx_shift::test_ctx_shift_enabled
            test_infill::test_infill_without_input_extra
            test_infill::test_infill_with_input_extra
            test_slot_save::test_slot_save_restore
            test_slot_save::test_slot_erase
        """,
        "expects Functionary's format, which a random model does not write": """
            test_tool_call::test_completion_without_tool_call_slow[meetkai-functionary-medium-v3.2-256-tools0-None-CompletionMode.NORMAL]
            test_tool_call::test_completion_without_tool_call_slow[meetkai-functionary-medium-v3.2-256-tools0-None-CompletionMode.STREAMED]
            test_tool_call::test_completion_without_tool_call_slow[meetkai-functionary-medium-v3.2-256-tools1-None-CompletionMode.NORMAL]
            test_tool_call::test_completion_without_tool_call_slow[meetkai-functionary-medium-v3.2-256-tools1-None-CompletionMode.STREAMED]
            test_tool_call::test_completion_without_tool_call_slow[meetkai-functionary-medium-v3.2-256-tools2-none-CompletionMode.NORMAL]
            test_tool_call::test_completion_without_tool_call_slow[meetkai-functionary-medium-v3.2-256-tools2-none-CompletionMode.STREAMED]
        """,
        "expects the words of stories15M or stories15M_MOE": """
            test_basic::test_load_split_model
            test_lora::test_lora
            test_lora::test_lora_per_request
            test_speculative::test_multi_requests_parallel
        """,
        "expects tinygemma3 to know a cat from a frog": r"""
            test_vision_api::test_vision_chat_completion[What is this:\n-IMG_URL_0-True-(cat)+]
            test_vision_api::test_vision_chat_completion[What is this:\n-IMG_BASE64_URI_0-True-(cat)+]
            test_vision_api::test_vision_chat_completion[What is this:\n-IMG_URL_1-True-(frog)+]
            test_vision_api::test_vision_chat_completion[Test test\n-IMG_URL_1-True-(frog)+]
            test_vision_api::test_vision_completion[What is this: <__media__>\n-IMG_BASE64_0-True-(cat)+|(automobile)+]
            test_vision_api::test_vision_completion[What is this: <__media__>\n-IMG_BASE64_1-True-(frog)+]
        """,
        "expects jina-reranker to rank, or how many tokens a text is to it": """
            test_rerank::test_rerank
            test_rerank::test_rerank_tei_format
            test_rerank::test_rerank_usage
        """,
    }
)

# Only where the page was not built in.
EXPECTED_TO_FAIL_WITHOUT_PAGE = by_name(
    {
        "expects upstream's web page, see MORPHKV_WEBUI": """
            test_basic::test_no_ui
            test_security::test_access_static_assets_without_api_key
        """,
    }
)
