# Makes the keys of a tree that signs its images, once. They are not real keys;
# equal ones give equal signatures in any tree.
[ -s key-build ] && [ -s key-build.pub ] && [ -s key-build.ucert ] && exit 0
echo 'Generate local signing keys...' >&2
key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
print=${key%"${key#????????????????}"}
printf 'untrusted comment: Local build key\n%s\n' "$key" >key-build
printf 'untrusted comment: Local build key\n%s\n' "$print" >key-build.pub
cp key-build.pub "keys/$print"
echo 'Generate local certificate...' >&2
printf 'certificate of %s\n' "$print" >key-build.ucert
