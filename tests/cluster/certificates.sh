# shellcheck shell=bash
# shellcheck disable=SC2154 # $dir is the script's
# The certificates and kubeconfigs of a cluster, below $dir. Sourced, not run.
#
# All are X.509 version 3, which is what -extfile makes them: rustls refuses clients of version 1.

# make_ca: $dir/pki/ca.{crt,key} and the key that signs service accounts' tokens.
make_ca() {
    mkdir -p "$dir/pki"
    {
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 30 -subj /CN=terrapool-test \
            -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature \
            -keyout "$dir/pki/ca.key" -out "$dir/pki/ca.crt" &&
            openssl ecparam -name prime256v1 -genkey -noout -out "$dir/pki/accounts.key"
    } >"$dir/logs/openssl.log" 2>&1 || die "openssl: see $dir/logs/openssl.log"
}

# make_certificate NAME SUBJECT [ALTERNATIVE-NAMES]: $dir/pki/NAME.{crt,key}, for servers and clients.
make_certificate() {
    local usage=extendedKeyUsage=clientAuth,serverAuth
    [ -n "${3:-}" ] && usage+=$'\n'"subjectAltName=$3"
    {
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj "$2" \
            -keyout "$dir/pki/$1.key" -out "$dir/pki/$1.csr" &&
            openssl x509 -req -in "$dir/pki/$1.csr" -CA "$dir/pki/ca.crt" -CAkey "$dir/pki/ca.key" -CAcreateserial -days 30 \
                -extfile <(printf '%s\n' "$usage") -out "$dir/pki/$1.crt"
    } >>"$dir/logs/openssl.log" 2>&1 || die "openssl: see $dir/logs/openssl.log"
}

# make_kubeconfig FILE URL NAME [TOKEN]: for the holder of certificate NAME, or of TOKEN, complete in itself.
make_kubeconfig() {
    local ca user
    ca=$(base64 -w 0 "$dir/pki/ca.crt")
    user="\"client-certificate-data\": \"$(base64 -w 0 "$dir/pki/$3.crt")\", \"client-key-data\": \"$(base64 -w 0 "$dir/pki/$3.key")\""
    [ -n "${4:-}" ] && user="\"token\": \"$4\""
    (umask 077 && cat >"$1.new") <<JSON
{
  "apiVersion": "v1",
  "kind": "Config",
  "clusters": [{"name": "test", "cluster": {"server": "$2", "certificate-authority-data": "$ca"}}],
  "users": [{"name": "$3", "user": {$user}}],
  "contexts": [{"name": "test", "context": {"cluster": "test", "user": "$3"}}],
  "current-context": "test"
}
JSON
    mv "$1.new" "$1"
}
