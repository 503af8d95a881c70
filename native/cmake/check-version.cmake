# `cmake -P` this: fails where cmake is older than the project needs.
cmake_minimum_required(VERSION 3.21)
