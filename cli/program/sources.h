// Sources: the documents that a person names on the command line.
#pragma once

#include "mneme/text/document.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mneme::cli {

/// A document that is to be read, before its text is in memory.
struct Source {
  std::string path;   ///< empty: standard input
  std::string label;  ///< what it is cited as: see list_sources
  std::int64_t bytes = 0;
  bool once = false;      ///< standard input or a pipe: it can be read only once
  bool nameless = false;  ///< the label is the shell's, of a `<(...)`: it says nothing to a reader
};

/// What paths come to.
struct Sources {
  std::vector<Source> sources;
  std::vector<SkippedFile> skipped;  ///< what folders hold beside documents
};

/// Lists what files, folders and "-" come to; no file is opened. A file's label is its path from the current directory on
/// or, outside of that, as given; within a folder that is given it begins with the folder's own name; standard input is
/// "stdin" and a pipe of the shell "fd/63". `label` names the only source, or the only one that comes from standard input
/// or a pipe. Throws Error(not_found), Error(io), Error(invalid) for a folder without documents, and Error(usage) for a
/// label of several sources or two sources of one label.
Sources list_sources(const std::vector<std::string>& paths, const std::string& label);

/// Calls `each` with the documents, a few at a time so that a library of books need not be in memory at once, after all
/// of them have been read through once: a file that cannot be read ends it before anything is done with the others.
/// `each` returns whether to go on. Throws as read_document, and Interrupted.
void for_documents(const std::vector<Source>& sources,
                   const std::function<bool(std::vector<Document>)>& each);

/// "12 files left out: 8 hidden, 3 binary, 1 empty", or "" for none.
std::string describe_skipped(const std::vector<SkippedFile>& skipped);

}  // namespace mneme::cli
