#include <algorithm>
#include <unordered_set>

#include "ptxvm/body.h"
#include "ptxvm/lexer.h"
#include "ptxvm/syntax.h"
#include "ptxvm/variables.h"

namespace lumos::ptxvm {
namespace {

constexpr int kMaxThreads = 1 << 30;  // no block is that large

class FileParser {
 public:
  explicit FileParser(const std::string& text) : cursor_(text) {}

  Program parse() {
    while (cursor_.peek().kind != Token::Kind::end) directive();
    return std::move(program_);
  }

 private:
  void directive() {
    const bool is_extern = linkage();
    if (cursor_.accept(".entry")) {
      function(true);
    } else if (cursor_.accept(".func")) {
      function(false);
    } else if (cursor_.accept(".global")) {
      variable(&program_.global, is_extern);
    } else if (cursor_.accept(".const")) {
      variable(&program_.constant, is_extern);
    } else if (cursor_.accept(".shared")) {
      variable(&program_.shared, is_extern);
    } else if (cursor_.accept(".file")) {
      file_name();
    } else if (cursor_.accept(".section")) {
      skip_to("}");
    } else if (cursor_.accept(".pragma")) {
      skip_to(";");
    } else if (cursor_.accept(".version")) {
      cursor_.next();
    } else if (cursor_.accept(".target")) {
      do {
        cursor_.word();
      } while (cursor_.accept(","));
    } else if (cursor_.is(".address_size")) {
      const int line = cursor_.next().line;
      if (cursor_.integer() != 64) fail(line, "addresses must have 64 bits");
    } else {
      cursor_.unexpected("a directive of the file");
    }
  }

  // Whether it says that something is declared only.
  bool linkage() {
    bool is_extern = false;
    for (;; cursor_.next()) {
      if (cursor_.is(".extern")) {
        is_extern = true;
      } else if (!cursor_.is(".visible") && !cursor_.is(".weak") && !cursor_.is(".common")) {
        return is_extern;
      }
    }
  }

  void skip_to(const char* end) {
    while (!cursor_.accept(end)) cursor_.next();
  }

  void file_name() {
    const int index = cursor_.integer();
    if (cursor_.peek().kind != Token::Kind::string) cursor_.unexpected("the name of a file");
    const std::string_view quoted = cursor_.next().text;
    program_.files[index] = quoted.substr(1, quoted.size() - 2);
    while (cursor_.accept(",")) cursor_.next();  // time and size
  }

  void variable(std::vector<Variable>* variables, bool is_extern) {
    const int line = cursor_.line();
    Declaration declaration = read_declaration(&cursor_);
    Variable& made = declaration.variable;
    if (variables == &program_.shared) {
      made.dynamic = declaration.is_open;
    } else if (cursor_.accept("=")) {
      read_initial(&cursor_, file_names_, &declaration);
    }
    cursor_.expect(";");
    if (file_names_.insert(made.name).second) {
      if (is_extern) extern_names_.insert(made.name);
      variables->push_back(std::move(made));
      return;
    }
    const auto known = std::find_if(variables->begin(), variables->end(),
                                    [&](const Variable& other) { return other.name == made.name; });
    if (known == variables->end() || (!is_extern && !extern_names_.erase(made.name))) {
      fail(line, "'" + made.name + "' is declared twice");
    } else if (!is_extern) {
      *known = std::move(made);
    }
  }

  void function(bool is_kernel) {
    Function made;
    made.is_kernel = is_kernel;
    BodyParser body(&cursor_, file_names_, &made);
    if (cursor_.is("(")) made.results = formals(&body);
    const int line = cursor_.line();
    made.name = cursor_.word();
    if (cursor_.is("(")) made.params = formals(&body);
    attributes(&made);

    const auto known = program_.functions.find(made.name);
    if (!file_names_.insert(made.name).second && known == program_.functions.end()) {
      fail(line, "'" + made.name + "' is a variable already");
    }
    made.has_body = !cursor_.accept(";");
    if (made.has_body) {
      if (known != program_.functions.end() && known->second.has_body) {
        fail(line, "'" + made.name + "' is defined twice");
      }
      body.parse();
      program_.functions[made.name] = std::move(made);
    } else if (known == program_.functions.end()) {
      program_.functions[made.name] = std::move(made);
    }
  }

  std::vector<Variable> formals(BodyParser* body) {
    std::vector<Variable> made;
    cursor_.expect("(");
    while (!cursor_.accept(")")) {
      if (!made.empty()) cursor_.expect(",");
      cursor_.expect(".param");
      const int line = cursor_.line();
      made.push_back(read_declaration(&cursor_).variable);
      made.back().name = body->declare(made.back().name, Name::Kind::variable, line);
    }
    return made;
  }

  // `.maxntid 128, 1, 1` and the like; those that are no bound of the threads tell the machine nothing.
  void attributes(Function* made) {
    while (cursor_.is_dotted()) {
      const Token& attribute = cursor_.next();
      if (cursor_.peek().kind == Token::Kind::number) {
        int64_t product = 1;
        do {
          product = std::min<int64_t>(product * cursor_.integer(), kMaxThreads);
        } while (cursor_.accept(","));
        if (attribute.is(".maxntid") || attribute.is(".reqntid")) made->max_threads = static_cast<int>(product);
      } else if (attribute.is(".pragma")) {
        skip_to(";");
      } else if (!attribute.is(".noreturn")) {
        fail(attribute.line, "unknown attribute '" + std::string(attribute.text) + "' of a function");
      }
    }
  }

  Cursor cursor_;
  Program program_;
  std::unordered_set<std::string> file_names_;    // of variables and functions
  std::unordered_set<std::string> extern_names_;  // of variables that are declared only, so far
};

}  // namespace

Program parse(const std::string& text) { return FileParser(text).parse(); }

}  // namespace lumos::ptxvm
