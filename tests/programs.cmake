# Tests that are programs in Python, one add_test each; run by the Python that has torch.
add_test(NAME rooms_include_upward
  COMMAND ${MNEME_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/rooms_include_upward.py ${CMAKE_SOURCE_DIR})
add_test(NAME rooms_include_upward.self_test
  COMMAND ${MNEME_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/rooms_include_upward.py --self-test)


# Token ids for tests/parity/tokenizers_parity.py, which compares them with Hugging Face's.
add_executable(tokenize_texts ${CMAKE_CURRENT_SOURCE_DIR}/parity/tokenize_texts.cpp)
target_link_libraries(tokenize_texts PRIVATE mneme_text)
# Skipped where that Python lacks transformers and tokenizers, or the data is not there.
if(NOT MNEME_REFERENCE_PYTHON)
  set(MNEME_REFERENCE_PYTHON ${MNEME_PYTHON})
endif()
get_filename_component(mneme_packages ${Torch_DIR}/../../../.. ABSOLUTE)
add_test(NAME tokenizers_parity
  COMMAND ${MNEME_REFERENCE_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/parity/tokenizers_parity.py
    $<TARGET_FILE:tokenize_texts> --packages ${mneme_packages})
set_tests_properties(tokenizers_parity PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600 LABELS slow)

# Parity with Hugging Face: small tools that the Python scripts of tests/parity drive.
add_executable(logits_tool ${CMAKE_CURRENT_SOURCE_DIR}/parity/logits_tool.cpp)
target_link_libraries(logits_tool PRIVATE mneme_registry)
target_precompile_headers(logits_tool REUSE_FROM mneme_pch)
