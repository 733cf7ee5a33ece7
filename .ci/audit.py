"""Ask for known vulnerabilities of what is installed; say so where no service answers.

The exit status is 1 only if a vulnerability is known. Packages that the service does not have are
named, since "none known" would be wrong for them.
"""

import json
import subprocess
import sys

command = ["pip_audit", "--format", "json", "--skip-editable", "--progress-spinner", "off"]
done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
try:
    packages = json.loads(done.stdout)["dependencies"]
except ValueError:
    print("no vulnerability service answers:", *done.stderr.splitlines()[-1:])
    sys.exit(0)
bad = [(each["name"], each["version"], v) for each in packages for v in each.get("vulns", [])]
skipped = sorted(each["name"] for each in packages if "skip_reason" in each)
for name, version, found in bad:
    fixed = ", ".join(found["fix_versions"]) or "no version"
    print(f"{name} {version}: {found['id']}, fixed in {fixed}")
print(f"{len(packages) - len(skipped)} packages asked about, {len(bad)} vulnerabilities known")
print(f"unknown to the service: {', '.join(skipped) or 'none'}")
sys.exit(bool(bad))
