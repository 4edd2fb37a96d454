# shellcheck shell=bash
# shellcheck disable=SC2154 # $work is the script's
# What an image contains, as the listings that archive.py reads: one function for each kind of content. Sourced, not run.
#
# Files that no machine has are written to $work, and written anew only when they are others: archive.py goes by that.

# keep FILE: the input goes there unless that is what it contains.
keep() {
    cat >"$1.new"
    if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

# Accounts and places that programs expect: a user without a name is a surprise to some.
base_listing() {
    printf 'root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/home/nonroot:/bin/sh\n' | keep "$work/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' | keep "$work/group"
    echo 'hosts: files dns' | keep "$work/nsswitch.conf"
    cat <<LINES
d 755 0 etc
f 644 etc/passwd $work/passwd
f 644 etc/group $work/group
f 644 etc/nsswitch.conf $work/nsswitch.conf
d 755 0 home
d 755 65532 home/nonroot
d 1777 0 tmp
LINES
}

# The certificates that this machine trusts: Debian keeps them at the first place, CentOS at the second.
certificates_listing() {
    local bundle
    for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
        [ -r "$bundle" ] && break
    done
    [ -r "$bundle" ] || { echo "${0##*/}: this machine has no certificates to trust: install ca-certificates" >&2; return 1; }
    # A copy: its own time does not change with every update of what it is a copy of.
    cmp -s "$bundle" "$work/ca-certificates.crt" || cp "$bundle" "$work/ca-certificates.crt"
    printf 'd 755 0 etc/ssl\nd 755 0 etc/ssl/certs\nf 644 etc/ssl/certs/ca-certificates.crt %s\n' "$work/ca-certificates.crt"
}

# libraries_listing PROGRAM: the libraries that it names, at the places where it looks for them.
libraries_listing() {
    local library
    ldd "$1" | grep -o '/[^ ]*' | sort -u | while read -r library; do
        echo "f 755 ${library#/} $(readlink -f "$library")"
    done
}
