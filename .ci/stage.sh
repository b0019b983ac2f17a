# For .ci/run: what a stage is, and the line that all of them end in.
#
#   stage MINUTES NAME COMMAND...   runs it; over its limit, or with another status than 0, it has failed
#   summary                         tells each stage's time, and all their tests; exits with 1 where one failed

set -o pipefail
passed=0 failed=0 skipped=0 table=""
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

stage() {
  local minutes=$1 name=$2 log="$logs/$2" begun=$SECONDS status=0 told=0 limit
  shift 2
  printf '\n=== %s (at most %s min): %s\n' "$name" "$minutes" "$*"
  limit=$(awk "BEGIN { print $minutes * 60 }")
  timeout --kill-after=30s "${limit}s" "$@" 2>&1 | tee "$log" || status=$?
  local took=$((SECONDS - begun)) verdict=ok
  count "$log"
  if [ "$status" -ne 0 ]; then
    verdict="failed with status $status"
    [ "$status" -eq 124 ] || [ "$status" -eq 137 ] && verdict="over its limit of $minutes min"
    [ "$told" -gt 0 ] || failed=$((failed + 1)) # of no test: the stage itself
  fi
  table+=$(printf '%-12s %5d s of %4d s  %s' "$name" "$took" "${limit%.*}" "$verdict")$'\n'
  printf '=== %s: %s, %d s\n' "$name" "$verdict" "$took"
}

# Adds up what pytest's closing lines in a log tell; `told` becomes the failures among them.
count() {
  local line number word
  while read -r line; do
    while read -r number word; do
      case $word in
        passed) passed=$((passed + number)) ;;
        skipped) skipped=$((skipped + number)) ;;
        failed | error | errors) failed=$((failed + number)) told=$((told + number)) ;;
      esac
    done < <(grep -oE '[0-9]+ (passed|failed|errors?|skipped)' <<<"$line")
  done < <(grep -E '(passed|failed|errors?|skipped).* in [0-9.]+s' "$1")
}

summary() {
  printf '\n%s\n%d passed, %d failed, %d skipped\n' "$table" "$passed" "$failed" "$skipped"
  [ "$failed" -eq 0 ]
}
