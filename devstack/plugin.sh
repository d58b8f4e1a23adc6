#!/bin/bash
#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

# Says what happens in which phase of DevStack. It is sourced, once for each:
# the functions are in lib/, which settings has read.

case "$1 ${2:-}" in
    "stack pre-install")
        if lustre_is_needed; then
            lustre_choose_mode
            lustre_check
            lustre_check_python
            echo_summary "Installing Lustre (LUSTRE_MODE=$LUSTRE_MODE)"
            lustre_install
        fi
        ;;
    "stack install")
        if lustre_is_needed; then
            echo_summary "Installing cinder-lustre"
            setup_develop "$LUSTRE_REPO_DIR"
            echo_summary "Starting Lustre"
            lustre_start
        fi
        ;;
    "stack post-config")
        if is_service_enabled cinder; then
            lustre_configure_cinder
        fi
        if is_service_enabled n-cpu; then
            lustre_configure_nova
        fi
        ;;
    "stack extra")
        if is_service_enabled c-api; then
            lustre_create_volume_types
        fi
        if lustre_is_needed; then
            lustre_examine
        fi
        ;;
    "stack test-config")
        if is_service_enabled tempest; then
            lustre_configure_tempest
        fi
        ;;
    "unstack ")
        lustre_unstack
        ;;
    "clean ")
        lustre_clean
        ;;
esac
