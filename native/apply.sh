#!/bin/sh
# Usage: apply.sh <llama.cpp>, a git checkout of the commit that UPSTREAM names, or its unpacked sources. Needs git.
#
# Applies patches/*.patch in order, to all files or to none. What a file has to be before and after is said by the patches
# themselves: git writes the ids of both contents into them. The patches are applied to copies in a repository of their own,
# because `git apply` below another repository does nothing and reports success; the copies replace the files once all of
# them are right.
set -eu

die() {
    printf 'apply.sh: %s\n' "$*" >&2
    exit 1
}

pin() {
    sed -n "s/^$1=//p" "$native/UPSTREAM"
}

id_of() {
    git hash-object --no-filters "$1" 2>/dev/null || echo none
}

# git's id of the folders that our sources are compiled against; `add` leaves out what upstream's .gitignore names.
id_of_sources() {
    git -C "$tree" --git-dir="$scratch/.git" --work-tree=. add common ggml/include include src >/dev/null 2>&1 || return 0
    git write-tree
}

[ $# -eq 1 ] || die "usage: apply.sh <folder of llama.cpp>"
command -v git >/dev/null || die "git is needed and was not found in PATH"
unset CDPATH
native=$(cd -- "$(dirname -- "$0")" && pwd -P)
tree=$(cd -- "$1" 2>/dev/null && pwd -P) || die "no such folder: $1"
for path in include/llama.h src/llama.cpp; do
    [ -f "$tree/$path" ] || die "$tree holds no llama.cpp: $path is missing"
done

# Nothing that the caller's git would do: another repository, filters, ends of lines.
# shellcheck disable=SC2046
unset $(git rev-parse --local-env-vars)
head=''
[ ! -e "$tree/.git" ] || head=$(git -C "$tree" rev-parse --verify --quiet HEAD 2>/dev/null) || head=''
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_ATTR_NOSYSTEM=1

set -- "$native"/patches/*.patch
scratch=$tree/.morphkv-apply.$$
trap 'cd / && rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
git init --quiet --template= "$scratch" || die "$tree cannot be written to"
cd "$scratch"
git config core.autocrlf false
git config core.fileMode false

# One line for each file that patches change: the id before the first patch, the id after the last, the path.
files=.git/files
awk '
    /^index / { split($2, ids, /\.\./); fresh = 1 }
    /^\+\+\+ b\// && fresh {
        path = substr($0, 7)
        if (!(path in before)) { before[path] = ids[1]; paths[++n] = path }
        after[path] = ids[2]
        fresh = 0
    }
    END { for (i = 1; i <= n; i++) print before[paths[i]], after[paths[i]], paths[i] }
' "$@" > "$files"
[ -s "$files" ] || die "$native/patches holds no patch"
! grep -q ' include/llama\.h$' "$files" || die "a patch changes include/llama.h, which must stay as it is"

pristine='' patched='' other=''
while read -r before after path; do
    case $(id_of "$tree/$path") in
        "$before") pristine=$path ;;
        "$after") patched=$path ;;
        *) other=$path ;;
    esac
done < "$files"

commit=$(pin COMMIT)
if [ -n "$patched" ]; then
    not=${other:-$pristine}
    [ -z "$not" ] || die "$tree is patched in part, or by other patches: $patched is as these patches leave it, $not is not. It was left as it is; begin with a fresh one of commit $commit"
    echo "$tree is patched already, by these very patches: nothing to do"
    exit 0
fi
if [ "$head" != "$commit" ]; then
    found=$(id_of_sources)
    [ "$found" = "$(pin SOURCES_ID)" ] || die "$tree is not llama.cpp of commit $commit:${head:+ HEAD is $head, and} its sources have the id ${found:-none} in place of $(pin SOURCES_ID)"
fi
[ -z "$other" ] || die "$tree was edited: $other is not that of commit $commit. Begin with a fresh one, and edit after"

llama_h=$(id_of "$tree/include/llama.h")
while read -r before after path; do
    mkdir -p "$(dirname "$path")"
    cp "$tree/$path" "$path"
    [ -w "$tree/$(dirname "$path")" ] || die "$tree/$(dirname "$path") cannot be written to"
done < "$files"
for patch in "$@"; do
    git apply --whitespace=nowarn "$patch" || die "${patch##*/} does not apply"
done
while read -r before after path; do
    [ "$(id_of "$path")" = "$after" ] || die "$path is not what the patches say after git apply"
done < "$files"

trap '' HUP INT TERM
while read -r before after path; do
    mv -f "$path" "$tree/$path"
done < "$files"
[ "$(id_of "$tree/include/llama.h")" = "$llama_h" ] || die "include/llama.h has changed"

echo "$tree: $# patches applied to $(grep -c . "$files") files, each proved by its id; include/llama.h is as before"
echo "Next: cmake -S '$tree' -B '$tree/build' -DLLAMA_MORPHKV_DIR='$native'"
