# A room is a static library over src/mneme/<room>, linked to the rooms before it.
add_library(mneme_pch OBJECT ${CMAKE_SOURCE_DIR}/src/mneme/pch.cpp)
target_precompile_headers(mneme_pch PRIVATE ${CMAKE_SOURCE_DIR}/src/mneme/pch.h)
include_directories(${CMAKE_SOURCE_DIR}/src)

# mneme_room(<name> [PLAIN]): PLAIN rooms do without ATen and its precompiled header.
function(mneme_room name)
  cmake_parse_arguments(ROOM "PLAIN" "" "" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/mneme/${name}/*.cpp)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/mneme/${name}/*.h)
  if(NOT sources)
    return()
  endif()
  add_library(mneme_${name} STATIC ${sources})
  target_sources(mneme_${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${CMAKE_SOURCE_DIR}/src FILES ${headers})
  get_property(above GLOBAL PROPERTY MNEME_ROOM_TARGETS)
  target_link_libraries(mneme_${name} PUBLIC ${above} ${MNEME_ROOM_LIBRARIES_${name}})
  if(NOT ROOM_PLAIN)
    target_precompile_headers(mneme_${name} REUSE_FROM mneme_pch)
  endif()
  if(CMAKE_UNITY_BUILD)
    set_target_properties(mneme_${name} PROPERTIES UNITY_BUILD_BATCH_SIZE 8)
  endif()
  set_property(GLOBAL APPEND PROPERTY MNEME_ROOM_TARGETS mneme_${name})
  set_property(GLOBAL APPEND PROPERTY MNEME_SOURCES ${sources})
endfunction()

set(MNEME_ROOM_LIBRARIES_core ${TORCH_LIBRARIES} fmt::fmt spdlog::spdlog Threads::Threads)
set(MNEME_ROOM_LIBRARIES_weights nlohmann_json::nlohmann_json PkgConfig::CRYPTO)
set(MNEME_ROOM_LIBRARIES_text nlohmann_json::nlohmann_json PkgConfig::PCRE2 PkgConfig::ICU)
set(MNEME_ROOM_LIBRARIES_search PkgConfig::SQLITE3 ${FAISS_LIBRARY} ${LAPACK_LIBRARIES} ${BLAS_LIBRARIES})
set(MNEME_ROOM_LIBRARIES_tasks PkgConfig::ICU PkgConfig::ZLIB)
set(MNEME_ROOM_LIBRARIES_memory PkgConfig::SQLITE3 PkgConfig::ZSTD)

# The kernels are compiled once a level, each with its own instructions and nothing that could leak them: the files
# kernels/level_<level>.cpp include every kernels/*.inl; the other sources are the dispatching wrappers.
function(mneme_kernels)
  mneme_room(kernels)
  if(NOT TARGET mneme_kernels)
    return()
  endif()
  set(folder ${CMAKE_SOURCE_DIR}/src/mneme/kernels)
  set_source_files_properties(${folder}/level_base.cpp ${folder}/level_avx2.cpp ${folder}/level_avx512.cpp PROPERTIES
    SKIP_PRECOMPILE_HEADERS ON SKIP_UNITY_BUILD_INCLUSION ON)
  set_property(SOURCE ${folder}/level_base.cpp PROPERTY COMPILE_OPTIONS -O3)
  set_property(SOURCE ${folder}/level_avx2.cpp PROPERTY COMPILE_OPTIONS -O3 -mavx2 -mfma -mf16c -mbmi2)
  set_property(SOURCE ${folder}/level_avx512.cpp PROPERTY COMPILE_OPTIONS -O3 -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw
    -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mprefer-vector-width=512
    # False alarms in GCC 12's own headers: _mm512_undefined_ps() is undefined on purpose (GCC bug 105593).
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> -Wno-uninitialized)
endfunction()
