# Compiler, linker and cache. One set of flags for every target: a precompiled header is dropped when flags differ.
option(MNEME_BUILD_TESTS "build the tests" ON)
option(MNEME_BUILD_BENCH "build the benchmark programs" ON)
option(MNEME_WARNINGS_AS_ERRORS "treat warnings as errors" OFF)
option(MNEME_SANITIZE "address and undefined-behaviour sanitizers" OFF)

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
                                  CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

set(CMAKE_POSITION_INDEPENDENT_CODE OFF)  # set by hand below, so that programs and libraries share one header
add_compile_options(-fPIC -Wall -Wextra -Wno-unused-parameter)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options(-Werror=invalid-pch -fpch-preprocess)
  if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
    # False alarms on `"x" + std::string` (GCC bug 105651), which would end a build where warnings are errors.
    add_compile_options(-Wno-restrict -Wno-stringop-overflow -Wno-array-bounds)
  endif()
endif()
if(MNEME_WARNINGS_AS_ERRORS)
  add_compile_options(-Werror)
endif()
if(MNEME_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()
